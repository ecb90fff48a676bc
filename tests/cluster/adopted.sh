# shellcheck shell=bash
# Clusters of others: a context of the user's kubeconfig, or kind. Sourced by cluster.sh.
# shellcheck disable=SC2154 # name, state, here are cluster.sh's

# A context of the user's kubeconfig. The plain user is a service account there: tokens cannot be made up for a cluster
# that is not ours.
up_context() {
  have kubectl || die "no kubectl on PATH: run \`tests/preflight.sh\`"
  save_kubeconfig admin kubectl config view --minify --flatten --context "$TP_CONTEXT"
  adopt_user
}

down_context() {
  [ -e "$state/admin.kubeconfig" ] || return 0
  local delete=(kubectl --kubeconfig "$state/admin.kubeconfig" delete --ignore-not-found)
  delete_samples
  "${delete[@]}" -n tp-system role/tp-user rolebinding/tp-user rolebinding/tp-user-developer serviceaccount/developer >/dev/null
  [ ! -e "$state/namespace-is-ours" ] || "${delete[@]}" namespace tp-system >/dev/null
  rm -rf "$state"
}

down_kind() {
  kind delete cluster --name "$name" --kubeconfig "$state/kind" >&2
  rm -rf "$state"
}

up_kind() {
  have kind || die "CLUSTER=kind needs kind on PATH; leave CLUSTER out for the cluster that needs nothing"
  mkdir -p "$state"
  kind get clusters 2>/dev/null | grep -qxF "$name" || kind create cluster --name "$name" --kubeconfig "$state/kind" --wait 120s >&2
  save_kubeconfig admin kind get kubeconfig --name "$name"
  adopt_user
}

adopt_user() {
  local admin=(kubectl --kubeconfig "$state/admin.kubeconfig") token
  "${admin[@]}" get namespace tp-system >/dev/null 2>&1 || touch "$state/namespace-is-ours"
  "${admin[@]}" apply -f - <"$here/rights.yaml" >/dev/null
  "${admin[@]}" -n tp-system create serviceaccount developer --dry-run=client -o yaml | "${admin[@]}" apply -f - >/dev/null
  "${admin[@]}" -n tp-system create rolebinding tp-user-developer --role=tp-user --serviceaccount=tp-system:developer \
    --dry-run=client -o yaml | "${admin[@]}" apply -f - >/dev/null
  token=$("${admin[@]}" -n tp-system create token developer --duration=24h)
  save_kubeconfig user cat "$state/admin.kubeconfig"
  local user=(kubectl --kubeconfig "$state/user.kubeconfig" config)
  "${user[@]}" set-credentials developer --token="$token" >/dev/null
  "${user[@]}" set-context --current --user=developer >/dev/null
  "${user[@]}" get-users | tail -n +2 | grep -vx developer | xargs -rn1 "${user[@]}" delete-user >/dev/null
}

# Images go to TP_REGISTRY where one is given, and into the nodes of a kind cluster otherwise.
load_elsewhere() {
  local ref target context=${TP_CONTEXT:-kind-$name}
  case $TP_REGISTRY:$context in
    docker.io/local:kind-*) ;;
    docker.io/local:*) die "the cluster of the context $context cannot be given images: set TP_REGISTRY to a registry it pulls from" ;;
  esac
  for ref in "$@"; do
    target=${TP_REGISTRY#docker.io/}/${ref##*/}
    docker tag "$ref" "$target"
    case $TP_REGISTRY in
      docker.io/local) kind load docker-image "$target" --name "${context#kind-}" >&2 ;;
      *) docker push -q "$target" >&2 ;;
    esac
    docker rmi "$target" >/dev/null
  done
}
