#!/usr/bin/env bash
# Nodes on this machine, on free ports of the loopback interface, below one folder.
#
#   cluster.sh up DIR [NODES]     make DIR if needed, start NODES nodes (default: as many as there are, at first 5)
#   cluster.sh peers DIR          print what `avidfs mount --peers` wants
#   cluster.sh kill DIR N         kill node N (counted from 1) with SIGKILL
#   cluster.sh start DIR N        start node N again, at the port it had
#   cluster.sh status DIR         say which nodes run
#   cluster.sh down DIR           end all nodes; their data stays
#
# BIN        folder with the program shardd (default: the release build of this project)
# FIRST_PORT where to begin looking for free ports (default: 7001)
# CAPACITY   bytes each node may fill (default: an equal share of what is free in DIR)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BIN=${BIN:-${CARGO_TARGET_DIR:-$here/target}/release}

die() {
  echo "cluster.sh: $*" >&2
  exit 1
}

usage() {
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "${BASH_SOURCE[0]}" >&2
  exit 2
}

# A process that has ended but was not waited for does not run any more.
runs() {
  local pid
  pid=$(cat "$dir/node$1.pid" 2>/dev/null) || return 1
  [ -d "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null
}

answers() {
  curl -fsS -m 1 "http://127.0.0.1:$1/healthz" >/dev/null 2>&1
}

# Below the range from which outgoing connections get theirs: a node that is down must find its port free again.
free_port() {
  local port
  for port in $(seq "${FIRST_PORT:-7001}" 32000); do
    grep -qsx "$port" "$dir"/node*.port && continue
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port" && return; }
  done
  die "no port is free"
}

count() {
  local n=0
  while [ -d "$dir/node$((n + 1))" ]; do n=$((n + 1)); done
  echo "$n"
}

start() {
  local n=$1 port
  runs "$n" && die "node $n runs already"
  [ -x "$BIN/shardd" ] || die "there is no shardd in $BIN: build it, or say where with BIN"
  mkdir -p "$dir/node$n"
  [ -e "$dir/node$n.port" ] || free_port >"$dir/node$n.port"
  port=$(cat "$dir/node$n.port")
  setsid "$BIN/shardd" --listen "127.0.0.1:$port" --data "$dir/node$n" ${capacity:+--capacity "$capacity"} \
    >>"$dir/node$n.log" 2>&1 </dev/null &
  echo $! >"$dir/node$n.pid"
  for _ in $(seq 100); do
    answers "$port" && return
    runs "$n" || break
    sleep 0.1
  done
  die "node $n does not answer: $(tail -n 3 "$dir/node$n.log")"
}

end() {
  local n=$1 signal=$2 pid
  runs "$n" || return 0
  pid=$(cat "$dir/node$n.pid")
  kill "-$signal" "$pid" 2>/dev/null || return 0
  for _ in $(seq 100); do
    runs "$n" || return 0
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
}

command=${1:-}
dir=${2:-}
if [ -z "$command" ] || [ -z "$dir" ]; then usage; fi
capacity=${CAPACITY:-$(cat "$dir/capacity" 2>/dev/null || true)}

case "$command" in
up)
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  have=$(count)
  nodes=${3:-$((have > 0 ? have : 5))}
  if [ -z "$capacity" ]; then
    capacity=$(($(df --output=avail -B1 "$dir" | tail -n 1) / nodes))
    echo "$capacity" >"$dir/capacity"
  fi
  for n in $(seq "$nodes"); do
    runs "$n" || start "$n"
  done
  ;;
peers)
  list=
  for n in $(seq "$(count)"); do list="$list${list:+,}http://127.0.0.1:$(cat "$dir/node$n.port")"; done
  echo "$list"
  ;;
kill)
  [ -n "${3:-}" ] || usage
  end "$3" KILL
  ;;
start)
  [ -n "${3:-}" ] || usage
  start "$3"
  ;;
status)
  for n in $(seq "$(count)"); do
    port=$(cat "$dir/node$n.port" 2>/dev/null || echo '?')
    if runs "$n" && answers "$port"; then state=runs; else state=down; fi
    echo "node $n  http://127.0.0.1:$port  $state"
  done
  ;;
down)
  for n in $(seq "$(count)"); do end "$n" TERM; done
  ;;
*) usage ;;
esac
