#!/usr/bin/env bash
# Fuzzes everything that reads network bytes: looks for inputs that make it panic, hang or break a rule of its own.
#
# usage: tests/fuzz.sh [--seconds N] [TARGET...]     each target for N seconds, 20 by default; all targets by default
# What it learns stays in .tmp/fuzz; an input at fault is in fuzz/artifacts, and belongs into fuzz/corpus/TARGET with the
# change that mends it: `make test` runs the targets over those.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$TP_ROOT_DIR"
seconds=20
if [ "${1:-}" = --seconds ]; then
  seconds=${2:?"--seconds needs a number"}
  shift 2
fi

have rustup || die "no rustup on PATH: fuzzing needs a nightly compiler beside the stable one, see https://rustup.rs"
rustup toolchain list | grep -q '^nightly' || die "no nightly compiler: run \`rustup toolchain install nightly --profile minimal\`"
have cargo-fuzz || die "no cargo-fuzz on PATH: run \`cargo install --locked cargo-fuzz\`"

targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(cd fuzz/fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')
for target in "${targets[@]}"; do
  learnt=.tmp/fuzz/$target
  mkdir -p "$learnt"
  step "fuzzing $target for $seconds s"
  # The first folder is where new inputs go.
  cargo +nightly fuzz run "$target" "$learnt" "fuzz/corpus/$target" -- \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1
done
