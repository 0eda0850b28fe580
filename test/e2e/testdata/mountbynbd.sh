#!/bin/sh
# Runs in a guest, as root: mounts a snapshot's disk by NBD in all ways, and has the mount end in all ways. See TestMountByNBD.
set -eu
export SPORE_STORE=/store SNAPSHOT_CACHE_DIR=/tmp/cache HOME=/root
fail() { echo "failed: $*"; cat /tmp/err /proc/mounts; ls /sys/block; dmesg | tail -n 20; exit 1; }
step() { echo "$(cut -d' ' -f1 /proc/uptime) $*"; }

mkdir /mnt /other
insmod /nbd.ko nbds_max=1
[ -e /dev/nbd0 ] || fail "there is no device"

# start mounts on /mnt or the folder in $dir, in the background, as process $p; its server is $s.
dir=/mnt
start() {
  rm -f /tmp/out
  spore mount --json "$@" "$dir" >/tmp/out 2>/tmp/err &
  p=$!
  # What it prints comes after the mount, and whole.
  until grep -qs '^}' /tmp/out; do
    kill -0 "$p" 2>/dev/null || fail "it is not mounted: $*"
    sleep 0.1
  done
  grep -q '"via": "nbd"' /tmp/out || fail "it is not mounted by NBD"
  grep -q "^/dev/nbd[01] $dir ext4" /proc/mounts || fail "it is not mounted"
  s=$(ps -o pid,ppid | awk -v p="$p" '$2 == p { print $1 }')
  [ -n "$s" ] || fail "nobody serves the disk"
}

# freed waits until neither a mount nor a device nor a process is left. The device that was there at first is there in the end, and no other.
freed() {
  n=0
  until ! grep -q /dev/nbd /proc/mounts && [ "$(echo /sys/block/nbd*)" = /sys/block/nbd0 ] && [ ! -e /sys/block/nbd0/backend ] && [ "$(cat /sys/block/nbd0/size)" = 0 ] &&
    ! kill -0 "$p" 2>/dev/null && ! kill -0 "$s" 2>/dev/null; do
    n=$((n + 1))
    [ $n -lt 1000 ] || fail "something is left"
    sleep 0.1
  done
}

step read-only
start disk
md5sum -c /sums >/dev/null || fail "files differ"
! touch /mnt/new 2>/dev/null || fail "it can be written to"
kill -INT "$p"
wait "$p" || fail "unmounting"
freed

step "killed, with a reader"
start disk --via nbd
while cat /mnt/dir/* >/dev/null 2>&1; do :; done &
reader=$!
kill -KILL "$p"
wait "$p" || :
wait "$reader" || :
freed

step "the server killed, with a reader"
start disk
while cat /mnt/dir/* >/dev/null 2>&1; do echo 3 >/proc/sys/vm/drop_caches; done &
reader=$!
kill -KILL "$s"
! wait "$p" || fail "nobody says that the server was killed"
grep -q 'the process that served the disk has ended' /tmp/err || fail "what is said of a killed server"
wait "$reader" || :
freed

step written
start disk --writable --verify
echo more >>/mnt/dir/2
sync
echo 3 >/proc/sys/vm/drop_caches
tail -n 1 /mnt/dir/2 | grep -q 'more$' || fail "what was written is lost"
kill -TERM "$p"
wait "$p" || fail "unmounting"
freed

step "empty, beside another, which takes a device that is not there yet"
start disk
first=$p firsts=$s

dir=/other
start --empty --size 32MB --block-size 1024
grep -q '"device": "/dev/nbd1"' /tmp/out || fail "not on another device"
cp /mnt/dir/3 /other
cmp /mnt/dir/3 /other/3
kill -HUP "$p"
wait "$p" || fail "unmounting"
p=$first s=$firsts
md5sum -c /sums >/dev/null || fail "files differ"
dir=/mnt

step "both killed: the mount is dead, and its end frees the device"
kill -KILL "$p" "$s"
wait "$p" || :
umount /mnt
freed

step "the end"
echo "all is well"
