#!/usr/bin/env bash
# Looks at this machine for what building, testing and the demo need. Installs what the distribution has, builds what
# comes as a Go module, starts the Docker engine; for the rest it names the one command that brings it.
#
# usage: tests/preflight.sh [--check]     --check installs and starts nothing
set -euo pipefail
. "$(dirname "$0")/lib.sh"

HELM_VERSION=v3.21.4
GO_MINOR_MIN=21 # from here on, Go fetches the toolchain that go.mod asks for
DISK_GIB=12     # of it 6 for Cargo's target directory, 3 for Go's caches, 2 for Docker's images
MEMORY_GIB=4    # linking Kubernetes takes 3
INOTIFY_INSTANCES=128

check_only=
[ "${1:-}" != --check ] || check_only=yes
missing=0
packages=()

ok() { printf '  %sok%s       %s\n' "$GREEN" "$PLAIN" "$*" >&2; }
brings() { printf '  %sinstall%s  %s\n' "$BOLD" "$PLAIN" "$*" >&2; }
lacks() { # WHAT, and the command that brings it
  printf '  %smissing%s  %s\n           %s\n' "$RED" "$PLAIN" "$1" "$2" >&2
  missing=$((missing + 1))
}

# The proxy settings of this shell, for commands that are run as root.
proxies() { env | grep -iE '^(https?|no|all)_proxy=' || true; }

# Runs a command as root, if that takes no password; 2 where it cannot be tried.
quietly_as_root() {
  [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null || return 2
  as_root "$@" >/dev/null 2>&1
}

# --- Programs of the distribution -----------------------------------------------------------------------------------

distribution_has() { have apt-get && [ -n "$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \([0-9].*\)/\1/p')" ]; }

# Notes the package that brings what a command looks for: present NAME PACKAGE COMMAND...
present() {
  local name=$1 package=$2
  shift 2
  if "$@"; then
    ok "$name"
  elif [ -z "$check_only" ] && have apt-get; then
    brings "$name: package $package"
    packages+=("$package")
  else
    lacks "$name" "install your distribution's package of it (Debian: sudo apt-get install $package)"
  fi
}

program() { present "$1" "$2" have "$1"; } # PROGRAM PACKAGE

install_packages() {
  [ ${#packages[@]} -gt 0 ] || return 0
  step "apt-get install ${packages[*]}"
  local variables
  mapfile -t variables < <(proxies)
  local apt=(as_root env "${variables[@]}" DEBIAN_FRONTEND=noninteractive apt-get -qq)
  { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${packages[@]}"; } >"$TP_CACHE/apt.log" 2>&1 || {
    tail -n 15 "$TP_CACHE/apt.log" >&2
    lacks "${packages[*]}" "sudo apt-get update && sudo apt-get install ${packages[*]}"
  }
}

# --- Rust, Go, and what is built with them ----------------------------------------------------------------------------

check_rust() {
  local target version
  target=$(uname -m)-unknown-linux-musl
  version=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$TP_ROOT_DIR/rust-toolchain.toml")
  if have rustup; then
    has_rust() { (cd "$TP_ROOT_DIR" && rustup target list --installed 2>/dev/null | grep -qx "$target" && cargo clippy --version) >/dev/null 2>&1; }
    if ! has_rust && [ -z "$check_only" ]; then
      brings "Rust $version for $target: rustup"
      (cd "$TP_ROOT_DIR" && rustup toolchain install "$version" --profile minimal -c clippy -c rustfmt -t "$target") >&2 || true
    fi
    if has_rust; then ok "Rust $version, $target"; else lacks "Rust $version for $target" "rustup toolchain install $version -c clippy -c rustfmt -t $target"; fi
  elif have cargo && [ -d "$(rustc --print target-libdir --target "$target" 2>/dev/null)" ] &&
    [ "$(printf '%s\n' "$version" "$(rustc --version | cut -d' ' -f2)" | sort -V | head -n 1)" = "$version" ]; then
    ok "$(rustc --version), $target"
  elif [ -z "$check_only" ] && distribution_has rustup; then
    brings "rustup: package rustup"
    packages+=(rustup)
    rust_later=yes
  else
    lacks "Rust $version for $target" "curl --proto '=https' -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain $version -c clippy -c rustfmt -t $target"
  fi
}

check_go() {
  local minor
  minor=$(go version 2>/dev/null | sed -n 's/.*go1\.\([0-9]*\).*/\1/p')
  if [ "${minor:-0}" -ge "$GO_MINOR_MIN" ]; then
    ok "$(go version | cut -d' ' -f3)"
  elif [ -z "$check_only" ] && candidate=$(apt-cache policy golang-go 2>/dev/null | sed -n 's/^  Candidate: 2:1\.\([0-9]*\).*/\1/p') &&
    [ "${candidate:-0}" -ge "$GO_MINOR_MIN" ]; then
    brings "Go: package golang-go"
    packages+=(golang-go)
  else
    local arch
    arch=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
    lacks "Go 1.$GO_MINOR_MIN or later" \
      "curl -fsSL https://go.dev/dl/go1.24.0.linux-$arch.tar.gz | sudo tar -C /usr/local -xz && export PATH=\$PATH:/usr/local/go/bin"
  fi
}

check_helm() {
  if have helm; then
    ok "Helm $(helm version --short 2>/dev/null || echo '(of unknown version)')"
  elif [ -n "$check_only" ] || ! have go; then
    lacks Helm "go install helm.sh/helm/v3/cmd/helm@$HELM_VERSION"
  else
    brings "Helm $HELM_VERSION: its Go module, into $TP_CACHE/bin (about a minute, once)"
    GOBIN=$TP_CACHE/bin CGO_ENABLED=0 GOFLAGS='' go install "helm.sh/helm/v3/cmd/helm@$HELM_VERSION" >"$TP_CACHE/helm.log" 2>&1 || {
      tail -n 5 "$TP_CACHE/helm.log" >&2
      lacks Helm "go install helm.sh/helm/v3/cmd/helm@$HELM_VERSION"
    }
  fi
}

check_kubectl() {
  if have kubectl; then
    ok "kubectl $(kubectl version --client 2>/dev/null | sed -n 's/^Client Version: //p')"
  elif [ -n "$check_only" ] || ! have go; then
    lacks kubectl "tests/cluster/node-image.sh --program"
  else
    brings "kubectl: a part of the test cluster's program, into $TP_CACHE/bin"
    local program
    if program=$("$TP_ROOT_DIR/tests/cluster/node-image.sh" --program); then
      ln -sf "$program" "$TP_CACHE/bin/kubectl"
    else
      lacks kubectl "tests/cluster/node-image.sh --program"
    fi
  fi
}

# --- Docker -----------------------------------------------------------------------------------------------------------

start_engine() {
  local variables
  [ "$(id -u)" = 0 ] || have sudo || return 0
  mapfile -t variables < <(proxies)
  if [ -d /run/systemd/system ]; then
    brings "the Docker engine: systemctl start docker"
    as_root systemctl start docker || true
  else
    brings "the Docker engine: dockerd in the background, its log in $TP_CACHE/dockerd.log, its process in /var/run/docker.pid"
    as_root env "${variables[@]}" setsid -f dockerd >"$TP_CACHE/dockerd.log" 2>&1 </dev/null
  fi
  wait_for 30 as_root docker version || true
}

check_docker() {
  local said socket=${DOCKER_HOST:-unix:///var/run/docker.sock}
  if ! said=$(docker version -f '{{.Server.Version}}' 2>&1) && [ -z "$check_only" ] && [[ $said != *'permission denied'* ]] &&
    [ "$socket" = unix:///var/run/docker.sock ] && have dockerd; then
    start_engine
    said=$(docker version -f '{{.Server.Version}}' 2>&1) || true
  fi
  case $said in
    [0-9]*) ok "Docker engine $said" ;;
    *'permission denied'*) lacks "the right to use the Docker engine at $socket" "sudo usermod -aG docker $(id -un) && newgrp docker" ;;
    *)
      lacks "a running Docker engine at $socket" "sudo systemctl start docker   (or, without systemd: sudo dockerd &)"
      [ ! -s "$TP_CACHE/dockerd.log" ] || tail -n 3 "$TP_CACHE/dockerd.log" >&2
      ;;
  esac
}

# --- The machine ------------------------------------------------------------------------------------------------------

at_least() { # NAME, what there is, what is needed, unit, command
  if [ "$2" -ge "$3" ]; then ok "$1: $2 $4"; else lacks "$1: $2 $4, needed are $3" "$5"; fi
}

check_machine() {
  at_least 'free disk' "$(df -Pk "$TP_ROOT_DIR" | awk 'NR == 2 {print int($4 / 1048576)}')" "$DISK_GIB" GiB \
    'free some, or work in a checkout on another disk (the caches move with TP_CACHE, GOCACHE, GOMODCACHE)'
  at_least 'available memory' "$(awk '/^MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)" "$MEMORY_GIB" GiB 'end other programs'
  at_least 'inotify instances' "$(cat /proc/sys/fs/inotify/max_user_instances)" "$INOTIFY_INSTANCES" '' \
    "sudo sysctl -w fs.inotify.max_user_instances=512"
}

# A kernel feature, by what uses it: feature NAME MODULE COMMAND... (as root, in a network namespace of its own)
feature() {
  local name=$1 module=$2 tried=0
  shift 2
  quietly_as_root unshare --net --mount "$@" || tried=$?
  if [ "$tried" = 1 ] && quietly_as_root modprobe "$module"; then
    tried=0
    quietly_as_root unshare --net --mount "$@" || tried=$?
  fi
  case $tried in
    0) ok "kernel: $name" ;;
    2) ok "kernel: $name (not tried: that takes root)" ;;
    *) lacks "kernel: $name" "sudo modprobe $module" ;;
  esac
}

check_kernel() {
  feature TUN tun sh -c 'ip tuntap add mode tun name tp-check || exit 1'
  feature veth veth sh -c 'ip link add tp-check type veth || exit 1'
  feature overlayfs overlay sh -c 'grep -qw overlay /proc/filesystems || exit 1'
  feature IPv6 ipv6 sh -c 'test -d /proc/sys/net/ipv6 || exit 1'
  feature FUSE fuse sh -c 'test -c /dev/fuse || exit 1'
  feature nftables nf_tables sh -c 'iptables -t nat -A OUTPUT -j RETURN || exit 1'
}

# --------------------------------------------------------------------------------------------------------------------

[ "$(uname -s)" = Linux ] || die "the test cluster needs Linux. Elsewhere, run this in a Linux virtual machine, or give TP_CONTEXT"
mkdir -p "$TP_CACHE"/{bin,target} "$CARGO_TARGET_DIR"
touch "$CARGO_TARGET_DIR"
find "$TP_CACHE/target" -mindepth 1 -maxdepth 1 -mtime +14 -exec rm -rf {} +
step "looking for what is needed"
rust_later=
program gcc gcc
present 'headers of the C library' libc6-dev test -e /usr/include/grp.h
program make make
program git git
program musl-gcc musl-tools
program debootstrap debootstrap
present "Debian's archive keys" debian-archive-keyring test -e /usr/share/keyrings/debian-archive-keyring.gpg
program shellcheck shellcheck
program jq jq
program ip iproute2
program iptables iptables
program docker docker.io
have docker && { have dockerd || docker version >/dev/null 2>&1 || program dockerd docker.io; }
check_rust
check_go
install_packages
[ -z "$rust_later" ] || check_rust
check_helm
check_kubectl
check_docker
check_machine
check_kernel
[ "$missing" = 0 ] || die "$missing of these are missing; the command under each brings it"
