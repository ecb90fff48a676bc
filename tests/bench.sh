#!/usr/bin/env bash
# Brings up a cluster for the benchmarks, runs them with the given arguments, and takes it down again.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
export TP_CLUSTER=${TP_CLUSTER:-tp-bench}
testbed=$TP_ROOT_DIR/tests/testbed.sh

trap '"$testbed" down' EXIT
"$testbed" up >/dev/null
eval "$("$testbed" env)"
cd "$TP_ROOT_DIR"
cargo build --quiet --release --locked -p tp-netstack --example throughput
cargo run --quiet --release --locked -p tp-tests --bin tp-bench -- \
  --netstack "$CARGO_TARGET_DIR/release/examples/throughput" "$@"
