#!/bin/sh
# Podman for tests and the demo, without a registry and without a trace in the machine's own podman storage.
#
#   eval "$(scripts/test-image.sh DIR)"     set up in DIR (images, containers, configuration), print the environment
#   scripts/test-image.sh --remove DIR      stop and remove all containers of DIR, then DIR itself
#
# The image is Debian's static busybox in an empty root, under the names that examples use (busybox, ubuntu,
# debian). Short names resolve because the image is already there: podman's pull policy is "missing".
set -eu

usage() {
    echo "Usage: $0 DIR | $0 --remove DIR" >&2
    exit 2
}

need() {
    command -v "$1" >/dev/null 2>&1 || {
        echo "Error: $1 is not installed: run \`apt-get install $2\`." >&2
        exit 1
    }
}

environment() {
    CONTAINERS_CONF=$dir/containers.conf
    CONTAINERS_STORAGE_CONF=$dir/storage.conf
    export CONTAINERS_CONF CONTAINERS_STORAGE_CONF
}

remove() {
    [ -f "$dir/containers.conf" ] || return 0
    environment
    podman rm --all --force --time 0 >/dev/null
    podman rmi --all --force >/dev/null
    # storage drivers bind-mount their own root
    umount "$dir"/root/*/ 2>/dev/null || true
    rm -rf --one-file-system "$dir"
}

configure() {
    runtime=crun
    command -v crun >/dev/null 2>&1 || runtime=runc
    need "$runtime" runc
    # podman asks for more than the hard limit, which needs CAP_SYS_RESOURCE: ask for no more than there is
    files=$(ulimit -H -n)
    [ "$files" = unlimited ] && files=1048576
    [ "$files" -le 20000 ] || files=20000
    cat >"$dir/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=$files:$files", "nproc=$files:$files"]
log_driver = "k8s-file"
netns = "host"
[engine]
runtime = "$runtime"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "$dir/tmp"
[network]
network_config_dir = "$dir/networks"
CONF
    cat >"$dir/storage.conf" <<CONF
[storage]
driver = "vfs"
graphroot = "$dir/root"
runroot = "$dir/run"
CONF
}

import() {
    rootfs=$dir/rootfs
    mkdir -p "$rootfs/bin" "$rootfs/etc" "$rootfs/tmp" "$rootfs/proc" "$rootfs/sys" "$rootfs/dev" "$rootfs/root"
    chmod 1777 "$rootfs/tmp"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$rootfs/etc/passwd"
    echo 'root:x:0:' >"$rootfs/etc/group"
    cp "$busybox" "$rootfs/bin/busybox"
    for applet in $("$busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$rootfs/bin/$applet"
    done
    tar -C "$rootfs" -c . | podman import --quiet - localhost/busybox:latest >/dev/null
    rm -rf "$rootfs"
    for name in localhost/ubuntu docker.io/library/busybox docker.io/library/ubuntu docker.io/library/debian; do
        podman tag localhost/busybox:latest "$name:latest"
    done
}

case "${1:-}" in
--remove)
    [ $# -eq 2 ] || usage
    [ -d "$2" ] || exit 0
    dir=$(realpath "$2")
    remove
    exit 0
    ;;
"" | -*) usage ;;
esac
[ $# -eq 1 ] || usage
need podman podman
busybox=$(command -v busybox) || need busybox busybox-static
mkdir -p "$1"
dir=$(realpath "$1")
environment
if ! [ -f "$dir/containers.conf" ]; then
    configure
fi
podman image exists localhost/busybox:latest || import
echo "export CONTAINERS_CONF='$CONTAINERS_CONF' CONTAINERS_STORAGE_CONF='$CONTAINERS_STORAGE_CONF'"
