#!/usr/bin/env bash
# The long form of the tests: the same ones, with many more seeds and operations, over and over.
#
#   scripts/soak.sh [MINUTES] [arguments of cargo nextest run]
#
# AVIDFS_SOAK=1 tells random tests to go on for longer. Each draws seeds of its own and says, when it fails, how the one
# that failed is repeated; each parser of bytes from outside is tried for a minute. The simulation runs first in each
# round, and says how many seeds it does in a minute; AVIDFS_SEEDS is how many, AVIDFS_SEED the first.
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
  export AVIDFS_SOAK=1
  export PROPTEST_CASES=${PROPTEST_CASES:-4096}
  step "Round $round"
  cargo nextest run --profile soak --locked -p avidfs --no-capture -E 'test(=whatever_happens_nothing_that_was_acknowledged_is_lost)'
  cargo nextest run --profile soak --locked --workspace "$@"
done
say "$round rounds without a failure"
