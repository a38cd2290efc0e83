#!/usr/bin/env bash
# See it work: builds avidfs, starts five nodes on this machine, mounts a volume on them, copies a real tree of more
# than 200 MB in, kills two nodes, reads every byte back, writes on, brings the nodes back, and mounts once more.
# Less than two minutes after the build. Everything it makes lies in one temporary folder and is gone afterwards.
#
#   scripts/demo.sh [--keep]      --keep leaves it running and says how to use it
#
# BIN   folder with avidfs and shardd; nothing is built then
set -euo pipefail
# shellcheck source=lib.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

keep=
case "${1:-}" in
'') ;;
--keep) keep=yes ;;
*) die "there is no option $1: the only one is --keep" ;;
esac

cd "$root"
need_fuse
need tar:tar sha256sum:coreutils

build

dir=$(mktemp -d "${TMPDIR:-/tmp}/avidfs-demo.XXXXXX")
mnt=$dir/mnt
mkdir "$mnt"

clean_up() {
  local code=$?
  trap - EXIT INT TERM
  if mountpoint -q "$mnt" 2>/dev/null; then
    avidfs umount "$mnt" || fusermount3 -uz "$mnt" || umount -l "$mnt" || true
  fi
  [ "$code" = 0 ] || { say && say "The daemon's last words:" && tail -n 20 "$dir/state/avidfs.log" 2>/dev/null; } || true
  "$root/scripts/cluster.sh" down "$dir/nodes" || true
  rm -rf --one-file-system "$dir"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

free=$(df --output=avail -B1M "$dir" | tail -n 1)
[ "$free" -ge 1500 ] || die "$dir has $free MB free, 1500 are needed: say where there is more with TMPDIR"

cluster() {
  "$root/scripts/cluster.sh" "$@"
}

# Which files: the regular ones of a folder in the order of their names, until there are so many bytes.
choose() {
  find "$1" -xdev -type f -readable -size -32M ! -name $'*\n*' -printf '%s %p\n' 2>/dev/null |
    LC_ALL=C sort -k 2 | awk -v most="$2" 'total < most { total += $1; print }'
}

# Copy a list of "SIZE PATH" lines into a folder of the mount, saying how far it is.
copy() {
  local list=$1 to=$2 bytes
  bytes=$(awk '{ total += $1 } END { print total }' "$list")
  mkdir -p "$to"
  # Twenty pieces of about the same size, each told when it is there.
  rm -f "$dir"/piece.*
  awk -v each="$((bytes / 20 + 1))" -v prefix="$dir/piece." '
    { piece = sprintf("%s%02d", prefix, total / each); total += $1; sub(/^[0-9]+ \//, ""); print > piece }' "$list"
  local piece done=0
  for piece in "$dir"/piece.*; do
    tar -C / --no-recursion -cf - -T "$piece" | tar -C "$to" -xf -
    done=$((done + $(cd / && tr '\n' '\0' <"$piece" | xargs -0 stat -c %s -- | awk '{ t += $1 } END { print t }')))
    printf '\r  %3d %%  %d of %d MB' $((done * 100 / bytes)) $((done / 1000000)) $((bytes / 1000000))
  done
  printf '\n'
}

sums() {
  (cd "$2" && awk '{ sub(/^[0-9]+ \//, ""); print }' "$1" | tr '\n' '\0' | xargs -0 -P 2 -n 200 sha256sum -- | LC_ALL=C sort -k 2)
}

# Read every byte back, from the nodes and not from the kernel's memory, and compare.
compare() {
  local list=$1 to=$2 files began=$SECONDS
  files=$(wc -l <"$list")
  forget_pages "$to"
  sums "$list" "$to" >"$dir/read"
  if ! cmp -s "$list.sums" "$dir/read"; then
    diff "$list.sums" "$dir/read" | sed -n '1,10p' || true
    die "what was read is not what was written"
  fi
  say "  all $files files are what they were, byte for byte (SHA-256), in $((SECONDS - began)) s"
}

forget_pages() {
  if [ -w /proc/sys/vm/drop_caches ] && sync -f "$1" && echo 1 >/proc/sys/vm/drop_caches 2>/dev/null; then
    return
  fi
  find "$1" -type f -print0 | xargs -0 -n 1 -I{} dd if={} iflag=nocache count=0 status=none
}

status() {
  avidfs status "$mnt" | sed 's/^/  /'
}

began=$SECONDS
step "Five nodes on this machine"
cluster up "$dir/nodes" 5
cluster status "$dir/nodes" | sed 's/^/  /'

step "A volume on them, code 3+2: each object becomes five fragments, and any three are enough"
# Small caches, so that what is read comes from the nodes.
mount_options=(--state "$dir/state" --cache-memory 16MiB --cache-disk 0)
avidfs mount "$mnt" --peers "$(cluster peers "$dir/nodes")" --code 3+2 "${mount_options[@]}"
say "  mounted at $mnt"

step "Copying a real tree in"
# Libraries are large files, what is shared are small ones.
{ choose /usr/lib 150000000 && choose /usr/share 60000000; } >"$dir/tree"
size=$(awk '{ total += $1 } END { print total }' "$dir/tree")
[ "$size" -ge 200000000 ] || choose /usr/bin 200000000 >>"$dir/tree"
size=$(awk '{ total += $1 } END { print total }' "$dir/tree")
[ "$size" -ge 200000000 ] || die "this machine has only $((size / 1000000)) MB below /usr to copy"
sums "$dir/tree" / >"$dir/tree.sums"
copying=$SECONDS
copy "$dir/tree" "$mnt/tree"
say "  $(wc -l <"$dir/tree") files in $((SECONDS - copying)) s"

step "Where one of them is"
largest=$(sort -n "$dir/tree" | tail -n 1 | cut -d' ' -f2-)
avidfs info "$mnt/tree$largest" | sed -n '1,10s/^/  /p'

step "Killing nodes 1 and 2 (kill -9)"
cluster kill "$dir/nodes" 1
cluster kill "$dir/nodes" 2
cluster status "$dir/nodes" | sed 's/^/  /'

step "Reading everything back from the three that are left"
compare "$dir/tree" "$mnt/tree"

step "Writing more while two are dead"
head -n 300 "$dir/tree" >"$dir/more"
sums "$dir/more" / >"$dir/more.sums"
copy "$dir/more" "$mnt/more"
status

step "Starting the two nodes again"
cluster start "$dir/nodes" 1
cluster start "$dir/nodes" 2
for _ in $(seq 60); do
  avidfs status "$mnt" --json >"$dir/status"
  # All up, and every fragment back where it belongs.
  ! grep -q '"state": "down"' "$dir/status" && grep -q '"objects_not_at_home": 0' "$dir/status" && break
  sleep 0.5
done
status

step "Unmounting, and mounting again (the volume remembers its nodes)"
avidfs umount "$mnt"
avidfs mount "$mnt" "${mount_options[@]}"
compare "$dir/tree" "$mnt/tree"
compare "$dir/more" "$mnt/more"

step "Done in $((SECONDS - began)) s: two of five nodes were dead, and no byte was lost"
[ -n "$keep" ] || exit 0

trap - EXIT INT TERM
cat <<END
It keeps running. Use it:
  ls $mnt                                        a directory like any other
  $BIN/avidfs status $mnt
  $BIN/avidfs info FILE
  BIN=$BIN $root/scripts/cluster.sh kill $dir/nodes 3
  BIN=$BIN $root/scripts/cluster.sh start $dir/nodes 3
End it:
  $BIN/avidfs umount $mnt && $root/scripts/cluster.sh down $dir/nodes && rm -rf --one-file-system $dir
END
