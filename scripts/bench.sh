#!/usr/bin/env bash
# Prints what avidfs does on this machine, as a table: one large file through a mount onto nodes on tmpfs, healthy and
# with two nodes dead; what programs feel (`avidfs bench`); and the memory and CPU time of every process.
#
#   scripts/bench.sh [--plot] [GIB]      size of the file, default 1
#
# --plot also measures other codes, parallel writers, sizes of files, numbers of dead nodes and a line that is 10 ms
# longer, and draws it all: docs/charts/*.svg, and docs/charts/figures.tsv that they are drawn from.
#
# MOUNT_OPTS   further options of `avidfs mount`
# BIN          folder with avidfs and shardd; they are not built then
# SECONDS_EACH of `avidfs bench`, default 5
set -euo pipefail
# shellcheck source=lib.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

plot=
if [ "${1:-}" = --plot ]; then
  plot=yes
  shift
fi
gib=${1:-1}
[[ $gib =~ ^[1-9][0-9]*$ ]] || die "the size is a number of GiB, such as 1 or 4"
need_fuse
build
if [ -n "$plot" ]; then
  cargo build --locked --release -q -p avidfs-tests --bins
fi

dir=$(mktemp -d /dev/shm/avidfs-bench.XXXXXX)
mnt=$dir/mnt
tmpfs=
clean_up() {
  local code=$?
  trap - EXIT INT TERM
  tear_down || true
  [ -z "$tmpfs" ] || umount -l "$dir" || true
  rm -rf --one-file-system "$dir"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# The file, its fragments at 5/3 twice, and room for the logs' slack.
needed=$((gib * 5 + 1))
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

# A pool of new nodes, and a volume on it: `bring_up CODE [MILLISECONDS]`, with these behind relays that add them to every
# round trip.
bring_up() {
  local code=$1 delay=${2:-} peers
  local n=$((${code%+*} + ${code#*+}))
  CAPACITY=$((gib * 4))GiB cluster up "$dir/nodes" "$n"
  peers=$(cluster peers "$dir/nodes")
  [ -z "$delay" ] || peers=$(behind_relays "$delay" "$peers")
  # shellcheck disable=SC2086
  avidfs mount "$mnt" --peers "$peers" --code "$code" --state "$dir/state" ${MOUNT_OPTS:-}
}

tear_down() {
  mountpoint -q "$mnt" && { avidfs umount "$mnt" >/dev/null || fusermount3 -uz "$mnt" || umount -l "$mnt" || true; }
  if [ -e "$dir/relays" ]; then
    xargs kill <"$dir/relays" 2>/dev/null || true
    rm "$dir/relays"
  fi
  [ ! -d "$dir/nodes" ] || cluster down "$dir/nodes"
  rm -rf "$dir/nodes" "$dir/state"
}

# Starts a relay before each peer, and prints where they listen; their processes are noted for tear_down.
behind_relays() {
  local delay=$1 port=9301 list= peer
  for peer in ${2//,/ }; do
    "$target/release/avidfs-relay" "127.0.0.1:$port" "${peer#http://}" "$delay" </dev/null >/dev/null 2>&1 &
    echo $! >>"$dir/relays"
    list=$list${list:+,}http://127.0.0.1:$port
    port=$((port + 1))
  done
  sleep 0.3
  echo "$list"
}

now_ms() {
  echo $(($(date +%s%N) / 1000000))
}

# Runs a command and prints MB/s of so many bytes.
rate() {
  local bytes=$1 began
  shift
  began=$(now_ms)
  "$@"
  echo $((bytes / 1000 / ($(now_ms) - began + 1)))
}

forget() {
  if [ -w /proc/sys/vm/drop_caches ]; then
    sync -f "$mnt" && echo 1 >/proc/sys/vm/drop_caches
  fi
}

remount() {
  avidfs umount "$mnt" >/dev/null
  # Dead nodes are a warning, and meant.
  # shellcheck disable=SC2086
  avidfs mount "$mnt" --state "$dir/state" ${MOUNT_OPTS:-} 2>/dev/null
  forget
}

pids() {
  cat "$dir/state/lock" "$dir"/nodes/node*.pid 2>/dev/null
}

peak_mib() {
  awk '/^VmHWM/ { print int($2 / 1024) }' "/proc/$1/status" 2>/dev/null || echo 0
}

# CPU seconds of the mount daemon and all nodes.
cpu() {
  local pid
  for pid in $(pids); do
    awk '{ sub(/^.*\) /, ""); print $12 + $13 }' "/proc/$pid/stat" 2>/dev/null || true
  done | awk -v ticks="$(getconf CLK_TCK)" '{ sum += $1 } END { printf "%.2f", sum / ticks }'
}

copy_in() {
  cp "$dir/source" "$mnt/$1"
  sync "$mnt/$1"
}

read_out() {
  dd if="$mnt/$1" of=/dev/null bs=1M status=none
}

# What of this run is to be drawn: chart, series, x, y.
figures=$dir/figures.tsv
note() {
  printf '%s\t%s\t%s\t%s\n' "$@" >>"$figures"
}

row() {
  printf '%-44s %14s   %s\n' "$@"
}

touch_memory() {
  # The first touch of a page is slow on virtual machines, and is not what is measured.
  head -c "$((gib * 11 / 3 + 1))G" /dev/zero >"$dir/touched" && rm "$dir/touched"
}

bytes=$((gib * 1073741824))

large_file() {
  step "One file of $gib GiB, code 3+2, five nodes on tmpfs, $(nproc) cores"
  touch_memory
  head -c "${gib}G" /dev/urandom >"$dir/source"
  bring_up 3+2
  local began written write_cpu healthy read_cpu degraded degraded_write daemon nodes=0 pid
  began=$(cpu)
  written=$(rate "$bytes" copy_in file)
  write_cpu=$(awk -v a="$began" -v b="$(cpu)" -v gib="$gib" 'BEGIN { printf "%.2f", (b - a) / gib }')
  daemon=$(peak_mib "$(cat "$dir/state/lock")")
  remount
  began=$(cpu)
  healthy=$(rate "$bytes" read_out file)
  read_cpu=$(awk -v a="$began" -v b="$(cpu)" -v gib="$gib" 'BEGIN { printf "%.2f", (b - a) / gib }')
  cmp "$dir/source" "$mnt/file" || die "what was read is not what was written"
  note dead write 0 "$written"
  note dead "cold read" 0 "$healthy"
  rm "$mnt/file"
  copy_in file
  cluster kill "$dir/nodes" 1
  remount
  note dead "cold read" 1 "$(rate "$bytes" read_out file)"
  note dead write 1 "$(rate "$bytes" copy_in one-dead)"
  rm "$mnt/one-dead"
  cluster kill "$dir/nodes" 2
  remount
  degraded=$(rate "$bytes" read_out file)
  rm "$mnt/file"
  degraded_write=$(rate "$bytes" copy_in degraded)
  note dead "cold read" 2 "$degraded"
  note dead write 2 "$degraded_write"
  for pid in "$dir"/nodes/node[345].pid; do
    pid=$(peak_mib "$(cat "$pid")")
    [ "$pid" -gt "$nodes" ] && nodes=$pid
  done
  [ "$(peak_mib "$(cat "$dir/state/lock")")" -gt "$daemon" ] && daemon=$(peak_mib "$(cat "$dir/state/lock")")
  tear_down
  row "what" "figure" "wanted"
  row "cp + fsync" "$written MB/s" ""
  row "cold read" "$healthy MB/s" ""
  row "cold read, two nodes dead" "$degraded MB/s" ">= $((healthy * 9 / 10)) MB/s (0.9 of healthy)"
  row "cp + fsync, two nodes dead" "$degraded_write MB/s" ">= $((written * 9 / 10)) MB/s (0.9 of healthy)"
  row "CPU of all processes, per GiB written" "$write_cpu s" "<= 5.67 s"
  row "CPU of all processes, per GiB read cold" "$read_cpu s" "<= 1.94 s"
  row "peak memory of the mount daemon" "$daemon MiB" "<= 300 MiB"
  row "peak memory of a node, the largest" "$nodes MiB" "<= 64 MiB"
}

programs() {
  step "What programs feel: avidfs bench, code 3+2"
  bring_up 3+2
  avidfs bench "$mnt" --seconds "${SECONDS_EACH:-5}" | tee "$dir/felt"
  tear_down
  local name percentile value
  for percentile in p50 p99; do
    while read -r name value; do
      note latency "$percentile" "$name" "$value"
    done < <(sed -nE "
      s/^4 KiB write \+ fdatasync .*$percentile +([0-9.]+) ms.*/write+fdatasync \1/p
      s/^create 4 KiB files .*$percentile +([0-9.]+) ms.*/create \1/p
      s/^random 4 KiB reads .*$percentile +([0-9.]+) ms.*/read \1/p
      s/^remove .*$percentile +([0-9.]+) ms.*/remove \1/p" "$dir/felt")
  done
}

codes() {
  step "By code: one file of $gib GiB"
  row "code" "write" "cold read"
  local code write read
  for code in 3+2 6+3 10+4; do
    bring_up "$code"
    write=$(rate "$bytes" copy_in file)
    remount
    read=$(rate "$bytes" read_out file)
    tear_down
    row "$code" "$write MB/s" "$read MB/s"
    note codes write "$code" "$write"
    note codes "cold read" "$code" "$read"
  done
}

# Each writes a file of its own share.
write_at_once() {
  local writers=$1 i writing=()
  for i in $(seq "$writers"); do
    dd if="$dir/source" of="$mnt/part$i" bs=1M count=$((gib * 1024 / writers)) conv=fsync status=none &
    writing+=($!)
  done
  wait "${writing[@]}"
}

writers() {
  step "By writers at once: $gib GiB together, each fsyncs its file"
  row "writers" "write" ""
  local writers write
  bring_up 3+2
  for writers in 1 2 4 8; do
    write=$(rate "$bytes" write_at_once "$writers")
    rm "$mnt"/part*
    row "$writers" "$write MB/s" ""
    note writers write "$writers" "$write"
  done
  tear_down
}

# Files of one size, together so many MiB.
write_files() {
  local size=$1 count=$2 i
  for i in $(seq "$count"); do
    dd if="$dir/source" of="$mnt/sizes/$i" bs="$size" count=1 status=none
  done
  sync -f "$mnt"
}

sizes() {
  step "By size of the files, one after the other, synced at the end"
  row "size" "write" "cold read"
  local size count write read total
  bring_up 3+2
  for size in 4K:2000 64K:1000 1M:256 16M:32 256M:2; do
    count=${size#*:}
    size=${size%:*}
    mkdir "$mnt/sizes"
    total=$(($(numfmt --from=iec "$size") * count))
    write=$(rate "$total" write_files "$size" "$count")
    remount
    read=$(rate "$total" sh -c "cat '$mnt'/sizes/* >/dev/null")
    rm -r "$mnt/sizes"
    row "$size" "$write MB/s" "$read MB/s"
    note sizes write "$size" "$write"
    note sizes "cold read" "$size" "$read"
  done
  tear_down
}

distance() {
  step "By distance: one writer, one file of $gib GiB, behind relays that add so many ms to each round trip"
  row "added" "write" "wanted"
  local delay write near=
  for delay in 0 10; do
    bring_up 3+2 "$delay"
    write=$(rate "$bytes" copy_in file)
    tear_down
    row "$delay ms" "$write MB/s" "${near:+>= $((${near:-0} * 7 / 10)) MB/s (0.7 of near)}"
    near=$write
    note distance write "$delay ms" "$write"
  done
}

name_charts() {
  local line
  for line in "dead|title|By number of dead nodes, code 3+2" "dead|unit|MB/s, one file of $gib GiB" \
    "codes|title|By code" "codes|unit|MB/s, one file of $gib GiB" \
    "writers|title|By writers at once, code 3+2" "writers|unit|MB/s of all together" \
    "sizes|title|By size of the files, code 3+2" "sizes|unit|MB/s, one file after the other" \
    "distance|title|By latency added to each round trip, code 3+2" "distance|unit|MB/s, one writer" \
    "latency|title|Latency of small operations, code 3+2" "latency|unit|ms"; do
    printf '%s\n' "${line//|/$'\t'}" >>"$figures"
  done
}

step "Codec, on one core"
cargo bench --locked -q -p avidfs-common --bench codec
large_file
programs
if [ -n "$plot" ]; then
  codes
  writers
  sizes
  distance
  name_charts
  mkdir -p docs/charts
  cp "$figures" docs/charts/figures.tsv
  "$target/release/avidfs-plot" docs/charts <"$figures"
  say "drawn in docs/charts"
fi
