#!/usr/bin/env bash
# What the scripts here share. To be sourced: `source "$(dirname "$0")/lib.sh"`.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # for those who source this
target=${CARGO_TARGET_DIR:-$root/target}

say() {
  printf '%s\n' "$*"
}

# A step, set off from what it prints.
step() {
  printf '\n== %s\n' "$*"
}

die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# Debian's packages for the programs that are missing: `need PROGRAM:PACKAGE ..`. Installs them as root or with sudo;
# otherwise says exactly what to install.
need() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  need_packages "${missing[@]}"
}

# Install Debian's packages, or say which.
need_packages() {
  local missing=("$@")
  local install=(apt-get install -y --no-install-recommends "${missing[@]}")
  command -v apt-get >/dev/null || die "missing: ${missing[*]}; install what your system calls them"
  if [ "$(id -u)" = 0 ]; then
    step "Installing ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get update -q && DEBIAN_FRONTEND=noninteractive "${install[@]}"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    step "Installing ${missing[*]}"
    sudo apt-get update -q && sudo DEBIAN_FRONTEND=noninteractive "${install[@]}"
  else
    die "missing: ${missing[*]}; install them with: sudo apt-get install ${missing[*]}"
  fi
}

# A Rust toolchain, and a C compiler for the database inside the metadata store.
need_rust() {
  # shellcheck source=/dev/null
  [ ! -e "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
  command -v cargo >/dev/null || die "cargo is missing: install Rust from https://rustup.rs"
  need cc:gcc ld:binutils
}

# The kernel's part, and the right to use it.
need_fuse() {
  need fusermount3:fuse3 curl:curl
  [ -e /dev/fuse ] || modprobe fuse 2>/dev/null || sudo -n modprobe fuse 2>/dev/null || true
  [ -e /dev/fuse ] || die "/dev/fuse is missing: load the kernel module fuse; in a container, give it --device /dev/fuse --cap-add SYS_ADMIN"
  [ -w /dev/fuse ] || die "/dev/fuse may not be opened by $(id -un): its mode is usually 0666"
}

# What the tests run on a mount: programs of the system, and two test suites from the package registry, which are
# kept below the target folder. An argument `long` adds what the long form of the tests runs.
need_test_programs() {
  need setfattr:attr getfacl:acl sqlite3:sqlite3 fuser:psmisc git:git rsync:rsync python3:python3 ip:iproute2
  python3 -m ensurepip --version >/dev/null 2>&1 || need_packages python3-venv
  if [ "${1:-}" = long ]; then
    need stress-ng:stress-ng runuser:util-linux
    compgen -G '/usr/lib/postgresql/*/bin/pgbench' >/dev/null || need_packages postgresql postgresql-contrib
  fi
  [ -e /usr/include/sys/acl.h ] || need_packages libacl1-dev
  need_tool pjdfstest 0.2.2
  need_tool fsx 0.3.2
}

# A program from the package registry, in exactly this version.
need_tool() {
  if ! "$target/tools/bin/$1" --version 2>/dev/null | grep -qxF "$1 $2"; then
    step "Installing $1 $2"
    cargo install --locked --version "$2" --root "$target/tools" --target-dir "$target/tools/build" "$1"
  fi
}

# The programs, optimised, in BIN and on the PATH.
build() {
  need_rust
  if [ -z "${BIN:-}" ]; then
    step "Building (the first time this takes some minutes)"
    cargo build --locked --release -p avidfs -p shardd
    BIN=$target/release
  fi
  BIN=$(cd "$BIN" && pwd)
  export BIN PATH="$BIN:$PATH"
}
