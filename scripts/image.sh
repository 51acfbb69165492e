#!/bin/sh
# The agent's image, built by buildah on a base that debootstrap makes of Debian 12: no registry is needed.
#
#   scripts/image.sh DIR     in the storage that scripts/test-image.sh has set up in DIR; prints the image's name
#
# The base's packages come from where this machine's do. It is kept in build/image, so that the next time is shorter.
set -eu

[ $# -eq 1 ] || { echo "Usage: $0 DIR" >&2; exit 2; }
cd "$(dirname "$0")/.."
for tool in buildah debootstrap podman runc; do
    command -v "$tool" >/dev/null 2>&1 || { echo "Error: $tool is not installed: run \`apt-get install $tool\`." >&2; exit 1; }
done
eval "$(scripts/test-image.sh "$1")"
kept=$PWD/build/image
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
mkdir -p "$kept"

if ! [ -f "$kept/base.tar" ]; then
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -1)
    debootstrap --variant=minbase bookworm "$work/root" "$mirror" >"$kept/debootstrap.log" 2>&1 || {
        tail -5 "$kept/debootstrap.log" >&2
        exit 1
    }
    cp -r /etc/apt/apt.conf.d "$work/root/etc/apt/"
    rm -rf "$work"/root/var/cache/apt/archives/*.deb
    tar -C "$work/root" -cf "$work/base.tar" .
    mv "$work/base.tar" "$kept/base.tar"
fi
podman image exists localhost/debian-base || podman import --quiet "$kept/base.tar" localhost/debian-base >/dev/null

# what this machine's pip needs to reach its index, during the build alone
set --
if [ -f /etc/pip.conf ]; then
    sed 's,^\(cert *= *\).*,\1/etc/build-ca.crt,' /etc/pip.conf >"$work/pip.conf"
    set -- --volume "$work/pip.conf:/etc/pip.conf:ro" --volume /etc/ssl/certs/ca-certificates.crt:/etc/build-ca.crt:ro
fi
limit=$(ulimit -H -n)
if [ "$limit" = unlimited ] || [ "$limit" -gt 20000 ]; then limit=20000; fi
buildah --runtime runc build --quiet --network host --isolation oci --ulimit "nofile=$limit:$limit" \
    --ulimit "nproc=$limit:$limit" "$@" --build-arg BASE=localhost/debian-base --tag localhost/fusevol:dev . \
    >"$kept/build.log" 2>&1 || {
    tail -20 "$kept/build.log" >&2
    exit 1
}
echo localhost/fusevol:dev
