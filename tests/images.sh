#!/usr/bin/env bash
# Makes the images of the programs in dist/, and the tests' image of Debian's services. Prints their names.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

need_docker
step "making the images"
for name in tp-manager tp-agent tp-sample; do
  image=$name:$TP_VERSION
  before=$(docker image ls -q --no-trunc "$image")
  docker_build --target "$name" -t "$image" -f "$TP_ROOT_DIR/Dockerfile" "$TP_ROOT_DIR/dist"
  # The build before this one has lost its name; it stays while a container uses it.
  [ "$before" = "$(docker image ls -q --no-trunc "$image")" ] || [ -z "$before" ] || docker rmi "$before" >/dev/null 2>&1 || true
  echo "$image"
done
"$TP_ROOT_DIR/tests/cluster/services-image.sh"
