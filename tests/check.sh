#!/usr/bin/env bash
# Everything that is checked before a change counts as done, cheapest first, for people and for CI alike.
#
# usage: tests/check.sh          all of it
#        tests/check.sh lint     what needs no engine and no cluster, tests left out
#        tests/check.sh e2e      the end-to-end part alone
# The last line is `N passed, N failed`; the exit code is 1 when any failed. Logs are in .tmp/check.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
cd "$TP_ROOT_DIR" || exit
export CARGO_TERM_COLOR=never
export TP_CLUSTER=${TP_CLUSTER:-tp-check} # not the one that `make cluster` leaves running
logs=$TP_ROOT_DIR/.tmp/check
rm -rf "$logs" && mkdir -p "$logs"

CARGO_DENY_VERSION=0.20.2
E2E_THREADS=6
testbed=''
passed=0
failed=0

# --- Counting ---------------------------------------------------------------------------------------------------------

count_ok() {
  passed=$((passed + $3))
  printf '%sok%s    %-28s %4d s  %s\n' "$GREEN" "$PLAIN" "$1" "$2" "${4:-}"
}
count_failed() {
  failed=$((failed + $3))
  printf '%sFAIL%s  %-28s %4d s  its whole output: %s\n' "$RED" "$PLAIN" "$1" "$2" "$4"
}
skipped() { printf '%s-     %-28s %s%s\n' "$DIM" "$1" "$2" "$PLAIN"; }

log_of() { echo "$logs/${1//[^a-z0-9]/-}.log"; }

# One check: check NAME COMMAND...
check() {
  local name=$1 log start=$SECONDS
  log=$(log_of "$name")
  shift
  if "$@" >"$log" 2>&1; then
    count_ok "$name" $((SECONDS - start)) 1
  else
    tail -n 40 "$log"
    count_failed "$name" $((SECONDS - start)) 1 "$log"
    return 1
  fi
}

# A run of `cargo test`, which counts its tests itself: suite NAME COMMAND...
suite() {
  local name=$1 log start=$SECONDS status=0 ran bad
  log=$(log_of "$name")
  shift
  "$@" >"$log" 2>&1 || status=$?
  ran=$(awk '/^test result:/ {n += $4} END {print n + 0}' "$log")
  bad=$(awk '/^test result:/ {n += $6} END {print n + 0}' "$log")
  passed=$((passed + ran))
  if [ "$status" = 0 ] && [ "$((ran + bad))" -gt 0 ]; then
    count_ok "$name" $((SECONDS - start)) 0 "$ran tests"
  else
    # From the first failure on; or the end, when it did not come to that.
    sed -n '/^failures:/,$p' "$log" | head -n 200 | grep . || tail -n 40 "$log"
    count_failed "$name" $((SECONDS - start)) "$((bad > 0 ? bad : 1))" "$log"
    return 1
  fi
}

# --- Lint -------------------------------------------------------------------------------------------------------------

no_output() {
  local output
  output=$("$@") || return
  [ -z "$output" ] || { echo "$output" && false; }
}

# The core crates stay free of an async runtime: a sans-IO core that can reach a socket will.
is_pure() {
  local all
  all=$(cargo tree --locked -p "$1" -e normal --prefix none) || return
  ! grep '^tokio ' <<<"$all"
}

# Values that the schema does not know are refused, so that a misspelt setting is no silent default.
chart_refuses_unknown_values() { ! helm template tp manager/chart --set nonsense=1 >/dev/null 2>&1; }

cargo_deny() { "$TP_CACHE/cargo-deny/bin/cargo-deny" --all-features --locked check --hide-inclusion-graph "$@"; }

install_cargo_deny() {
  [ "$("$TP_CACHE/cargo-deny/bin/cargo-deny" --version 2>/dev/null)" = "cargo-deny $CARGO_DENY_VERSION" ] && return
  step "building cargo-deny $CARGO_DENY_VERSION (a few minutes, once)"
  # It runs for seconds, and is built for minutes: unoptimised.
  (cd / && env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 cargo install --debug --quiet --locked --root "$TP_CACHE/cargo-deny" cargo-deny@"$CARGO_DENY_VERSION")
}

check_dependencies() {
  check 'install cargo-deny' install_cargo_deny || return
  check 'licences, bans, sources' cargo_deny bans licenses sources
  # Advisories come from a git repository, which not every machine reaches.
  if timeout 60 "$TP_CACHE/cargo-deny/bin/cargo-deny" --locked fetch db >"$(log_of 'fetch advisories')" 2>&1; then
    check advisories cargo_deny advisories
  else
    skipped advisories 'the advisory database cannot be fetched from here'
  fi
}

lint() {
  check 'format' cargo fmt --all --check -- --color never
  check 'format of fuzz targets' cargo fmt --manifest-path fuzz/Cargo.toml --check -- --color never
  check 'format of Go' no_output gofmt -l tests/cluster
  # shellcheck disable=SC2046 # paths without spaces
  check 'shellcheck' shellcheck $(git ls-files '*.sh') .ci/run
  check 'tp-protocol is pure' is_pure tp-protocol
  check 'tp-netstack is pure' is_pure tp-netstack
  check 'chart' helm lint --quiet --strict manager/chart
  check 'chart schema' chart_refuses_unknown_values
  check_dependencies
  check 'clippy' cargo clippy --locked --workspace --all-targets -- -D warnings
  check 'clippy of e2e' cargo clippy --locked --workspace --test e2e -- -D warnings
  check 'documentation' env RUSTDOCFLAGS='-D warnings' cargo doc --keep-going --locked --workspace --no-deps --document-private-items
}

# --- End to end -------------------------------------------------------------------------------------------------------

are_static() {
  local program
  for program in dist/*; do
    ! readelf -l "$program" | grep INTERP || { echo "$program needs a dynamic linker" && return 1; }
  done
}

bring_down() { tests/testbed.sh down; }

# Takes the cluster down, and looks for what its containers may have left in the engine and on the machine.
cluster_goes_without_a_trace() {
  local id volume ids volumes=''
  ids=$(docker ps -aq --no-trunc --filter "label=tp-test.cluster=$TP_CLUSTER")
  for id in $ids; do
    volumes+=$(docker inspect -f '{{range .Mounts}}{{.Name}} {{end}}' "$id")
  done
  bring_down || return
  for id in $ids; do
    ! docker inspect "$id" 2>/dev/null | grep '"Id"' || return
    ! find /sys/fs/cgroup -type d -path "*$id*" | grep . || return
  done
  for volume in $volumes; do
    ! docker volume inspect "$volume" 2>/dev/null | grep '"Name"' || return
  done
}

save_logs() {
  local container
  tests/cluster/cluster.sh logs "$logs/cluster" || true
  for container in $(docker ps -aq --filter label=tp.role); do
    docker logs "$container" >"$logs/container-$(docker inspect -f '{{.Name}}' "$container" | tr -d /).log" 2>&1
  done
  say "logs of nodes, pods and containers are in $logs"
}

# Starts the cluster's node in the background, since that is more waiting than work.
start_node() {
  trap 'wait; bring_down >/dev/null 2>&1' EXIT
  bring_down >/dev/null 2>&1
  tests/cluster/cluster.sh up >"$(log_of 'start of the node')" 2>&1 &
  node=$!
}

# Puts the product and the samples into the cluster in the background, for the same reason.
start_testbed() {
  check 'build' tests/build.sh || return
  check 'binaries are static' are_static
  check 'reference pages' tests/docs.sh --check
  check 'images' tests/images.sh || return
  check 'node' has_ended_well "$node" 'start of the node' || { save_logs && return 1; }
  tests/testbed.sh up >"$(log_of 'installation')" 2>&1 &
  testbed=$!
}

has_ended_well() { wait "$1" || { cat "$(log_of "$2")" && return 1; }; }

# With the whole workspace, so that dependencies are those that are compiled already, with the same features.
e2e() { cargo test --locked --workspace --test e2e -- "$@"; }

end_to_end() {
  [ -n "$testbed" ] || return # what failed was counted
  check 'cluster' has_ended_well "$testbed" 'installation' || { save_logs && return; }
  eval "$(tests/testbed.sh env)"
  # Most of a test is waiting for the cluster, so more of them run at a time than there are processors.
  suite 'end to end' e2e --skip ::alone_ --test-threads "$E2E_THREADS" || save_logs
  suite 'end to end, alone' e2e ::alone_ --test-threads 1 || save_logs
  check 'cluster leaves no trace' cluster_goes_without_a_trace
  trap - EXIT
}

# --------------------------------------------------------------------------------------------------------------------

finish() {
  printf '%d passed, %d failed\n' "$passed" "$failed"
  [ "$failed" = 0 ]
}

case ${1:-all} in
  lint) lint ;;
  e2e) start_node; start_testbed; end_to_end ;;
  all)
    tests/preflight.sh || { count_failed preflight "$SECONDS" 1 above; finish; exit 1; }
    start_node
    lint
    start_testbed
    suite 'tests of the crates' cargo test --locked --workspace --no-fail-fast
    end_to_end
    ;;
  *) die "usage: tests/check.sh [lint|e2e]" ;;
esac
finish
