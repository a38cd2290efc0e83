#!/usr/bin/env bash
# The long form of the tests: the same ones, with many more seeds and operations, over and over.
#
#   scripts/soak.sh [MINUTES] [arguments of cargo nextest run]
#
# AVIDFS_SOAK=1 tells random tests to go on for longer; AVIDFS_SEED is a new seed for each round and is printed, so
# that a failure is repeated with: AVIDFS_SOAK=1 AVIDFS_SEED=.. cargo nextest run ..
set -euo pipefail
# shellcheck source=lib.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

minutes=60
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  minutes=$1
  shift
fi
need_rust
need_fuse
need_test_programs long
cargo build --locked --workspace --bins --tests

end=$((SECONDS + minutes * 60))
round=0
while [ "$round" = 0 ] || [ "$SECONDS" -lt "$end" ]; do
  round=$((round + 1))
  AVIDFS_SEED=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')
  export AVIDFS_SEED AVIDFS_SOAK=1
  export PROPTEST_CASES=${PROPTEST_CASES:-4096}
  step "Round $round, AVIDFS_SEED=$AVIDFS_SEED"
  cargo nextest run --profile soak --locked --workspace "$@"
done
say "$round rounds without a failure"
