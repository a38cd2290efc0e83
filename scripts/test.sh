#!/usr/bin/env bash
# Everything a change must pass: formatting, lints, build, every test. The last lines are the tests' own summary, and
# the exit code is theirs. Needs Rust; installs what else is missing, or says exactly what to install.
#
#   scripts/test.sh [arguments of cargo nextest run]
set -euo pipefail
# shellcheck source=lib.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

need_rust
need_fuse
need_test_programs short
if ! cargo nextest --version >/dev/null 2>&1; then
  step "Installing cargo-nextest"
  cargo install --locked cargo-nextest
fi

step "Formatting"
cargo fmt --all --check

step "Lints"
cargo clippy --locked --workspace --all-targets -- -D warnings

# With the tests, so that what both need is compiled once.
step "Build"
cargo build --locked --workspace --bins --tests

step "Tests"
exec cargo nextest run --locked --workspace --no-fail-fast "$@"
