#!/usr/bin/env bash
# A cluster with the product and the samples in it, from the binaries in dist/ and the images of `make images`.
#
# usage: tests/testbed.sh up      the last line on stdout is `export KUBECONFIG=...`, the administrator's
#        tests/testbed.sh env     prints what the end-to-end tests and the benchmarks need to know, for a shell:
#                                 eval "$(tests/testbed.sh env)" && cargo test --workspace --test e2e
#        tests/testbed.sh down
# TP_CLUSTER, TP_CONTEXT and CLUSTER choose the cluster, as they do for tests/cluster/cluster.sh.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cluster=$TP_ROOT_DIR/tests/cluster/cluster.sh
tp=$TP_ROOT_DIR/dist/tp

up() {
  local admin verb=install
  "$cluster" up >/dev/null
  admin=$("$cluster" kubeconfig admin)
  step "loading images and samples"
  "$cluster" load {tp-manager,tp-agent,tp-sample}":$TP_VERSION" tp-debian-services:2
  "$cluster" samples
  "$cluster" kubectl -n tp-system get statefulset tp-manager >/dev/null 2>&1 && verb=upgrade
  step "tp helm $verb"
  KUBECONFIG=$admin "$tp" helm "$verb" --set "image.registry=$TP_REGISTRY" --set engage.inject=on-demand >&2
  "$cluster" samples agent
  say "the plain user's kubeconfig, which may port-forward to the manager and nothing else: $("$cluster" kubeconfig user)"
  echo "export KUBECONFIG=$admin"
}

environment() {
  printf 'export %s=%q\n' \
    TP_BIN "$tp" \
    TP_E2E_ADMIN_KUBECONFIG "$("$cluster" kubeconfig admin)" \
    TP_E2E_KUBECONFIG "$("$cluster" kubeconfig user)" \
    TP_E2E_MANAGER_NAMESPACE tp-system \
    TP_E2E_CLIENT_IMAGE tp-debian-services:2 \
    TP_E2E_RUNTIMES_IMAGE tp-debian-runtimes:2 \
    TP_E2E_SAMPLE_IMAGE "tp-sample:$TP_VERSION" \
    TP_E2E_CLUSTER_CLIENT_IMAGE "$TP_REGISTRY/tp-debian-services:2" \
    TP_E2E_CLUSTER_SAMPLE_IMAGE "$TP_REGISTRY/tp-sample:$TP_VERSION"
}

case ${1:-} in
  up) up ;;
  env) environment ;;
  down) "$cluster" down ;;
  *) die "usage: tests/testbed.sh up|env|down" ;;
esac
