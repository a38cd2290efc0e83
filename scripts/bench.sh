#!/usr/bin/env bash
# Prints what avidfs does on this machine: the codec alone, one large file through a mount onto five nodes on tmpfs,
# reading it healthy and with two nodes dead, and the most memory each process took.
#
#   scripts/bench.sh [GIB]        size of the file, default 1
#
# MOUNT_OPTS   further options of `avidfs mount`
# BIN          folder with avidfs and shardd; they are not built then
set -euo pipefail
# shellcheck source=lib.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

gib=${1:-1}
[[ $gib =~ ^[1-9][0-9]*$ ]] || die "the size is a number of GiB, such as 1 or 4"
need_fuse
build

step "Codec, on one core"
cargo bench --locked -q -p avidfs-common --bench codec

dir=$(mktemp -d /dev/shm/avidfs-bench.XXXXXX)
mnt=$dir/mnt
tmpfs=
clean_up() {
  local code=$?
  trap - EXIT INT TERM
  mountpoint -q "$mnt" && { avidfs umount "$mnt" || fusermount3 -uz "$mnt" || umount -l "$mnt" || true; }
  "$root/scripts/cluster.sh" down "$dir/nodes" || true
  [ -z "$tmpfs" ] || umount -l "$dir" || true
  rm -rf --one-file-system "$dir"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# The file, its fragments at 5/3, and room for the logs' slack.
needed=$((gib * 3 + 1))
if [ "$(id -u)" = 0 ]; then
  mount -t tmpfs -o "size=${needed}g" avidfs-bench "$dir"
  tmpfs=yes
fi
free=$(df --output=avail -B1G "$dir" | tail -n 1)
[ "$free" -ge $((needed - 1)) ] || die "$dir has $free GiB free, $needed are needed"
mkdir "$mnt"

cluster() {
  "$root/scripts/cluster.sh" "$@"
}

now_ms() {
  echo $(($(date +%s%N) / 1000000))
}

# Runs a command and prints MB/s of the file.
rate() {
  local began
  began=$(now_ms)
  "$@"
  echo $((gib * 1073741824 / 1000 / ($(now_ms) - began + 1)))
}

forget() {
  if [ -w /proc/sys/vm/drop_caches ]; then
    sync -f "$mnt" && echo 1 >/proc/sys/vm/drop_caches
  fi
}

remount() {
  avidfs umount "$mnt"
  # Two dead nodes are a warning, and meant.
  # shellcheck disable=SC2086
  avidfs mount "$mnt" --state "$dir/state" ${MOUNT_OPTS:-} 2>/dev/null
  forget
}

daemon_pid() {
  cat "$dir/state/lock"
}

peak_mib() {
  awk '/^VmHWM/ { print int($2 / 1024) }' "/proc/$1/status"
}

copy_in() {
  cp "$dir/source" "$mnt/file"
  sync "$mnt/file"
}

read_out() {
  dd if="$mnt/file" of=/dev/null bs=1M status=none
}

step "One file of $gib GiB, code 3+2, five nodes on tmpfs, $(nproc) cores"
# The first touch of a page is slow on virtual machines, and is not what is measured.
head -c "$((gib * 8 / 3 + 1))G" /dev/zero >"$dir/touched" && rm "$dir/touched"
head -c "${gib}G" /dev/urandom >"$dir/source"

CAPACITY=$((gib * 2))GiB cluster up "$dir/nodes" 5
# shellcheck disable=SC2086
avidfs mount "$mnt" --peers "$(cluster peers "$dir/nodes")" --state "$dir/state" ${MOUNT_OPTS:-}

written=$(rate copy_in)
memory=$(peak_mib "$(daemon_pid)")
remount
healthy=$(rate read_out)
cmp "$dir/source" "$mnt/file" || die "what was read is not what was written"
cluster kill "$dir/nodes" 1
cluster kill "$dir/nodes" 2
remount
degraded=$(rate read_out)
after=$(peak_mib "$(daemon_pid)")
[ "$after" -gt "$memory" ] && memory=$after
node=0
for pid in "$dir"/nodes/node[345].pid; do
  peak=$(peak_mib "$(cat "$pid")")
  [ "$peak" -gt "$node" ] && node=$peak
done

row() {
  printf '%-44s %12s   %s\n' "$@"
}
row "what" "figure" "wanted"
row "cp + fsync" "$written MB/s" ">= 300 MB/s"
row "cold read" "$healthy MB/s" ">= 600 MB/s"
row "cold read with two nodes dead" "$degraded MB/s" ">= $((healthy * 9 / 10)) MB/s (0.9 of healthy)"
row "peak memory of the mount daemon" "$memory MiB" "<= 512 MiB"
row "peak memory of a node" "$node MiB" "<= 128 MiB"
