#!/usr/bin/env bash
# Builds the release binaries, static, into dist/: tp, tp-manager, tp-agent, and tp-sample for tests.
# TP_TARGET names another Rust target; one with glibc is linked statically as well.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
target=${TP_TARGET:-$(uname -m)-unknown-linux-musl}
programs=(tp tp-manager tp-agent tp-sample)

have cargo || die "no cargo on PATH: run \`tests/preflight.sh\`, which names the command that brings it"
step "building ${programs[*]} for $target"
[[ $target != *-gnu ]] || export RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static"
cd "$TP_ROOT_DIR"
cargo build --release --locked --target "$target" "${programs[@]/#/--package=}" >&2
mkdir -p dist
for program in "${programs[@]}"; do
  built=$CARGO_TARGET_DIR/$target/release/$program
  cmp -s "$built" "dist/$program" || install -m 0755 "$built" "dist/$program"
done
