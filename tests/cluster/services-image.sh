#!/usr/bin/env bash
# Makes tp-debian-services:1, Debian's Redis and PostgreSQL with the clients that people use on them, and prints its name.
# It is the samples' server image as well as the client container of tests and demo.
set -euo pipefail
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/debian.sh"
image=tp-debian-services:1

need_docker
lock services-image
base=$(debian_image tp-debian-services-base ca-certificates redis-server redis-tools postgresql postgresql-client curl \
  bind9-dnsutils netcat-openbsd iperf3 iproute2 procps)
wanted=$(hash_of "$TP_ROOT_DIR/tests/cluster/services.dockerfile" <<<"$base")
made=$(docker image inspect -f '{{index .Config.Labels "tp-test.sources"}}' "$image" 2>/dev/null || true)
[ "$made" = "$wanted" ] || docker_build --build-arg BASE="$base" --label "tp-test.sources=$wanted" -t "$image" \
  - <"$TP_ROOT_DIR/tests/cluster/services.dockerfile"
echo "$image"
