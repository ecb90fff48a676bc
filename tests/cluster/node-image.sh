#!/usr/bin/env bash
# Makes the image of a test cluster's node from nothing but Go, gcc, debootstrap and Docker, and prints its name.
# Each part is cached under a hash of what it is made from: the program in $TP_CACHE, the images in the engine.
# With --program, only the program is made and its path printed; called as kubectl it is kubectl.
set -euo pipefail
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/debian.sh"
node=$TP_ROOT_DIR/tests/cluster/node
kubernetes=$(sed -n 's#^\tk8s.io/kubernetes v##p' "$node/go.mod")

# Kubernetes, etcd, CoreDNS and kubectl in one static program: 4 to 5 min on two cores the first time.
build_program() {
  program=$TP_CACHE/node/$(hash_of "$node/go.mod" "$node/go.sum" "$node/main.go")/kube-node
  [ -x "$program" ] && return
  have go || die "no Go toolchain: run \`tests/preflight.sh\`"
  step "building Kubernetes $kubernetes, etcd and CoreDNS from their Go modules (about 5 minutes, once)"
  rm -rf "$TP_CACHE/node" # earlier versions
  mkdir -p "$(dirname "$program")"
  local version=k8s.io/component-base/version major=${kubernetes%%.*} minor=${kubernetes#*.}
  (cd "$node" && CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' go build -trimpath -o "$program.part" -ldflags "-s -w \
    -X $version.gitVersion=v$kubernetes -X $version.gitMajor=$major -X $version.gitMinor=${minor%%.*}" .) >"$TP_CACHE/node.log" 2>&1 || {
    grep -v '^go: downloading' "$TP_CACHE/node.log" | tail -n 20 >&2
    die "Kubernetes could not be built; the whole output is in $TP_CACHE/node.log"
  }
  mv "$program.part" "$program"
}

build_image() {
  local base context
  base=$(debian_image tp-test-node-base ca-certificates containerd runc containernetworking-plugins iptables conntrack \
    ethtool socat openssl ipset kmod mount util-linux iproute2 procps)
  image=tp-test-node:$(hash_of "$node"/{pause.c,node.sh,coredns.yaml,Dockerfile} <<<"$base $program")
  docker image inspect "$image" >/dev/null 2>&1 && return
  step "making the node image"
  context=$(mktemp -d "$TP_CACHE/node-image.XXXX")
  gcc -static -Os -Wall -Werror -o "$context/pause" "$node/pause.c"
  printf 'FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n' >"$context/pause.dockerfile"
  docker_build -t local/pause:1 -f "$context/pause.dockerfile" "$context"
  docker save local/pause:1 -o "$context/pause.tar"
  docker rmi local/pause:1 >/dev/null
  ln "$program" "$context/kube-node" 2>/dev/null || cp "$program" "$context/kube-node"
  cp "$node"/{node.sh,coredns.yaml,Dockerfile} "$context"
  docker_build --build-arg BASE="$base" -t "$image" "$context"
  rm -rf "$context"
  remove_other_tags "$image"
}

lock node-image
build_program
[ "${1:-}" != --program ] || { echo "$program" && exit; }
need_docker
build_image
echo "$image"
