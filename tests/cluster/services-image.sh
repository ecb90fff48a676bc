#!/usr/bin/env bash
# Makes the images of programs that people use, and prints their names:
#   tp-debian-services:2   Debian's servers with their clients, and `peer`, which speaks for Go's libraries. It is the
#                          samples' server image as well as the client container of tests and demo
#   tp-debian-runtimes:2   the same with Java and Node, which only clients need
set -euo pipefail
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/debian.sh"
here=$TP_ROOT_DIR/tests/cluster

# The static program of peer/: seconds where Kubernetes was built before, a minute elsewhere.
build_peer() {
  peer=$TP_CACHE/peer/$(hash_of "$here"/peer/{go.mod,go.sum,*.go})/peer
  [ -x "$peer" ] && return
  have go || die "no Go toolchain: run \`tests/preflight.sh\`"
  step "building the Go client and server"
  mkdir -p "$(dirname "$peer")"
  (cd "$here/peer" && CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' go build -trimpath -ldflags '-s -w' -o "$peer.part" .) \
    >"$TP_CACHE/peer.log" 2>&1 || {
    tail -n 20 "$TP_CACHE/peer.log" >&2
    die "peer could not be built; the whole output is in $TP_CACHE/peer.log"
  }
  mv "$peer.part" "$peer"
}

# Makes an image unless it is there with the same sources: image NAME DOCKERFILE FILES -- BUILD-ARGUMENTS
image() {
  local name=$1 dockerfile=$2 files=() context wanted made
  shift 2
  while [ "$1" != -- ]; do files+=("$1") && shift; done
  shift
  wanted=$(hash_of "$dockerfile" "${files[@]}" <<<"$*")
  made=$(docker image inspect -f '{{index .Config.Labels "tp-test.sources"}}' "$name" 2>/dev/null || true)
  [ "$made" = "$wanted" ] || {
    context=$(mktemp -d "$TP_CACHE/image.XXXX")
    cp "${files[@]}" "$context"
    docker_build "$@" --label "tp-test.sources=$wanted" -t "$name" -f "$dockerfile" "$context"
    rm -rf "$context"
  }
  echo "$name"
}

need_docker
lock services-image
build_peer
# shellcheck disable=SC2034 # debian.sh's
DEBIAN_APART=(usr/lib/jvm 'usr/lib/*/libnode.so*')
base=$(debian_image tp-debian-services-base ca-certificates redis-server redis-tools postgresql postgresql-client \
  mariadb-server-core mariadb-client-core openssh-server openssh-client curl bind9-dnsutils netcat-openbsd iperf3 iproute2 \
  procps default-jre-headless ecj nodejs)
image tp-debian-services:2 "$here/services.dockerfile" "$peer" -- --build-arg "BASE=$base"
services=$(docker image inspect -f '{{.Id}}' tp-debian-services:2)
image tp-debian-runtimes:2 "$here/runtimes.dockerfile" "$here/runtimes/Client.java" -- \
  --build-arg "SERVICES=$services" --build-arg "APART=$(apart_image "$base")"
