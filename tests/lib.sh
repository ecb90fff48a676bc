# shellcheck shell=bash
# What the test scripts share: where things are, how they talk, how they become root. Sourced, never run.

# The checkout; every script works from any directory.
TP_ROOT_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# All that is downloaded or built for tests only, outside the checkout so that it outlives `git clean` and clones.
TP_CACHE=${TP_CACHE:-$HOME/.cache/tp-tests}
# Tools that the scripts had to build themselves come last: what the user installed wins. Debian keeps debootstrap,
# dockerd and iptables where only root looks.
PATH=$PATH:/usr/sbin:/sbin:$TP_CACHE/bin
export PATH TP_CACHE

# The images in a test cluster are named REGISTRY/NAME:TAG; those of docker.io/local are put there, never pulled.
TP_REGISTRY=${TP_REGISTRY:-docker.io/local}
TP_VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$TP_ROOT_DIR/Cargo.toml")
export TP_REGISTRY TP_VERSION

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
  BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' PLAIN=$'\e[0m'
else
  BOLD='' DIM='' RED='' GREEN='' PLAIN=''
fi
export BOLD DIM RED GREEN PLAIN

# Talk goes to stderr: stdout is for what a caller reads.
say() { printf '%s\n' "$*" >&2; }
step() { printf '%s==>%s %s\n' "$BOLD" "$PLAIN" "$*" >&2; }
die() {
  printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root: directly, or through sudo.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif have sudo; then
    sudo -- "$@"
  else
    die "\`$*\` needs root: run as root, or install sudo"
  fi
}

# Prints the first 12 hex digits of the SHA-256 of the given files' contents and of standard input, if any is piped in.
hash_of() {
  { [ -t 0 ] || cat; [ $# = 0 ] || cat -- "$@"; } | sha256sum | cut -c1-12
}

# What Cargo builds outlives the checkout as well, for the next clone at the same place. Two places never share it: Cargo
# tells their crates apart by the times of files only.
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$TP_CACHE/target/$(sha256sum <<<"$TP_ROOT_DIR" | cut -c1-12)}
export CARGO_TARGET_DIR

# Holds the lock NAME until the script ends, so that two runs do not build the same thing.
lock() {
  mkdir -p "$TP_CACHE/locks"
  exec {TP_LOCK_FD}>"$TP_CACHE/locks/$1"
  flock -n "$TP_LOCK_FD" || {
    say "waiting for another run that holds $TP_CACHE/locks/$1"
    flock "$TP_LOCK_FD"
  }
}

# Repeats a command every 0.2 s until it succeeds: wait_for SECONDS COMMAND...
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.2
  done
}

# Ends the script, with the next step, unless the engine answers.
need_docker() {
  have docker || die "no docker on PATH: run \`tests/preflight.sh\`, which installs it"
  docker info >/dev/null 2>&1 || die "the Docker engine does not answer: run \`tests/preflight.sh\`, which starts it"
}

# `docker build` by the engine itself, silent unless it fails: buildx is not on every machine.
docker_build() {
  local log
  log=$(DOCKER_BUILDKIT=0 docker build "$@" 2>&1) || {
    printf '%s\n' "$log" >&2
    return 1
  }
}
