#!/bin/sh
# The first program of a guest (tests/support/guest.py), in its initramfs: puts the host's root, which it only reads,
# under an overlay in memory, runs there the script `command` of the shared directory given as out=..., and powers off.
export PATH=/bin
bb=/bin/busybox
$bb mount -t proc none /proc
$bb mount -t sysfs none /sys
$bb mount -t devtmpfs none /dev

while read -r module; do
    $bb insmod "/modules/$module" || echo "guest: the module $module was not loaded"
done </modules/order

for word in $($bb cat /proc/cmdline); do
    case "$word" in out=*) out=${word#out=} ;; esac
done

stop() {
    echo "guest: $1"
    $bb poweroff -f
}

$bb mount -t virtiofs -o ro root /lower || stop "the host's root cannot be mounted"
$bb mount -t tmpfs -o size=50% none /upper
$bb mkdir /upper/upper /upper/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work none /root || stop "no overlay"

cd /root || stop "no root"
for dir in proc sys dev; do $bb mount --move "/$dir" "/root/$dir"; done
$bb mkdir -p dev/pts dev/shm
$bb mount -t devpts none dev/pts
$bb mount -t tmpfs none dev/shm
$bb mount -t tmpfs -o mode=755,size=75% none run
$bb mount -t cgroup2 none sys/fs/cgroup
$bb mount -t fusectl none sys/fs/fuse/connections
$bb ip link set lo up
$bb hostname guest
[ -e dev/fd ] || $bb ln -s /proc/self/fd dev/fd
$bb mkdir -p "/root$out"
$bb mount -t virtiofs out "/root$out" || stop "the shared directory cannot be mounted"
$bb cp "$bb" run/busybox

exec $bb switch_root /root /run/busybox sh -c '
/bin/bash "$1/command" >"$1/output" 2>&1 </dev/null
echo $? >"$1/status"
/run/busybox poweroff -f' init "$out"
