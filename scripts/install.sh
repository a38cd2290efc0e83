#!/usr/bin/env bash
# Put avidfs into the system, or take it away again: programs, what mount(8) and umount(8) call, manual pages,
# completions for bash, zsh and fish, and a systemd unit for nodes. What was put where is written down in
# PREFIX/share/avidfs/installed, and --uninstall takes away exactly that. To be repeated as often as one likes.
#
#   scripts/install.sh [--prefix DIR] [--destdir DIR] [--no-systemd] [--uninstall]
#
# --prefix DIR   where programs and pages go; /usr/local otherwise
# --destdir DIR  everything below this folder, as packagers want it
# --no-systemd   without the unit
# BIN            folder with avidfs, shardd and avidfs-pages; nothing is built then
set -euo pipefail
# shellcheck source=lib.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prefix=/usr/local
destdir=
systemd=yes
uninstall=
while [ $# -gt 0 ]; do
  case $1 in
  --prefix | --destdir) [ $# -gt 1 ] || die "$1 needs a folder" ;;&
  --prefix) prefix=$2 && shift 2 ;;
  --destdir) destdir=$2 && shift 2 ;;
  --no-systemd) systemd= && shift ;;
  --uninstall) uninstall=yes && shift ;;
  *) die "there is no option $1: see the head of this script" ;;
  esac
done
prefix=${prefix%/} destdir=${destdir%/}
case $prefix in /*) ;; *) die "--prefix $prefix must begin with /" ;; esac
case $destdir in '' | /*) ;; *) destdir=$PWD/$destdir ;; esac

list=$prefix/share/avidfs/installed

# Whether an earlier run put it there.
is_ours() {
  [ -e "$destdir$list" ] && grep -qxF -- "$1" "$destdir$list"
}

# Write down that a file, or a folder with a slash behind it, is ours.
note() {
  is_ours "$1" || printf '%s\n' "$1" >>"$destdir$list"
}

# A folder and those above it; those that were not there are noted, the uppermost first.
folder() {
  [ ! -d "$destdir$1" ] || return 0
  case $1 in */*/*) folder "${1%/*}" ;; esac
  mkdir -- "$destdir$1"
  made+=("$1/")
}

made=()
# What cannot be noted before there is a list.
note_made() {
  local path
  for path in "${made[@]}"; do note "$path"; done
  made=()
}

check_free() {
  [ ! -e "$destdir$1" ] && [ ! -L "$destdir$1" ] || is_ours "$1" ||
    die "$destdir$1 is there already, and not from here: take it away first"
}

# file MODE FROM TO
file() {
  check_free "$3"
  folder "${3%/*}"
  note_made
  note "$3"
  install -m "$1" -- "$2" "$destdir$3"
}

# link TARGET NAME
link() {
  check_free "$2"
  folder "${2%/*}"
  note_made
  note "$2"
  ln -sfn -- "$1" "$destdir$2"
}

# systemd reads units anew, unless this is somebody else's system.
reload() {
  [ -z "$systemd" ] || [ -n "$destdir" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
}

take_away() {
  [ -e "$destdir$list" ] || die "nothing is installed: there is no $destdir$list"
  local path paths
  mapfile -t paths <"$destdir$list"
  for path in "${paths[@]}"; do
    case $path in */) ;; *) rm -f -- "$destdir$path" ;; esac
  done
  # Longest first, so that a folder is empty before its turn comes; what others put there stays.
  printf '%s\n' "${paths[@]}" | { grep '/$' || true; } | LC_ALL=C sort -r | while read -r path; do
    rmdir --ignore-fail-on-non-empty -- "$destdir$path" 2>/dev/null || true
  done
  reload
  say "avidfs is gone from $destdir$prefix; volumes and their state folders are as they were"
}

put() {
  local pages=$1 page
  [ -z "$destdir" ] || mkdir -p -- "$destdir"
  folder "$prefix/share/avidfs"
  [ -e "$destdir$list" ] || : >"$destdir$list"
  note "$list"
  note_made
  file 755 "$BIN/avidfs" "$prefix/bin/avidfs"
  file 755 "$BIN/shardd" "$prefix/bin/shardd"
  for page in mount.avidfs mount.fuse.avidfs umount.avidfs umount.fuse.avidfs; do
    link "$prefix/bin/avidfs" "/sbin/$page"
  done
  # umount(8) looks for this one when it has asked the mount for its type, which says no more than "fuse". Mounts of
  # other programs are handed back to umount(8).
  if [ ! -e "$destdir/sbin/umount.fuse" ] || is_ours /sbin/umount.fuse; then
    link "$prefix/bin/avidfs" /sbin/umount.fuse
  else
    say "note: $destdir/sbin/umount.fuse is another program's: umount(8) will not wait until everything is stored"
  fi
  for page in "$pages"/man[18]/*; do
    file 644 "$page" "$prefix/share/man/${page#"$pages"/}"
  done
  for page in avidfs shardd; do
    file 644 "$pages/bash/$page.bash" "$prefix/share/bash-completion/completions/$page"
    file 644 "$pages/zsh/_$page" "$prefix/share/zsh/site-functions/_$page"
    file 644 "$pages/fish/$page.fish" "$prefix/share/fish/vendor_completions.d/$page.fish"
  done
  if [ -n "$systemd" ]; then
    sed "s|@bindir@|$prefix/bin|" "$root/systemd/shardd@.service" >"$pages/shardd@.service"
    file 644 "$pages/shardd@.service" "$prefix/lib/systemd/system/shardd@.service"
  fi
  reload
  say "avidfs is in $destdir$prefix; $0 --uninstall takes it away again"
}

if [ -n "$uninstall" ]; then
  take_away
  exit
fi
cd "$root"
if [ -z "${BIN:-}" ]; then
  need_rust
  step "Building (the first time this takes some minutes)"
  cargo build --locked --release -p avidfs -p shardd -p avidfs-pages
  BIN=$target/release
fi
BIN=$(cd "$BIN" && pwd)
pages=$(mktemp -d)
trap 'rm -rf "$pages"' EXIT
"$BIN/avidfs-pages" "$pages"
put "$pages"
