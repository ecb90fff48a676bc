#!/usr/bin/env bash
# Real Kubernetes clusters for tests and demo, each in Docker containers, brought up from nothing.
usage() {
  cat <<'TEXT'
usage: tests/cluster/cluster.sh COMMAND [--name NAME] [OPTIONS]

  up            bring the cluster up; a running, healthy one is kept. Prints the paths of both kubeconfigs
      --nodes N             nodes (default 1); a running cluster grows to N
      --pod-cidr CIDR[,CIDR]      default 10.244.0.0/16,fd00:10:244::/56; a /24 and a /64 of it per node
      --service-cidr CIDR[,CIDR]  default 10.96.0.0/16,fd00:10:96::/112; the first ends in .0
                            IPv4 alone, or IPv4 and IPv6, and both options alike
  down          remove it and all its traces, but for the images it is made from
  load IMAGE..  put images of the local engine into every node, as docker.io/local/NAME:TAG, and restart pods
                that run an earlier build of them
  samples [NAME..]  put the sample workloads of samples/ into it, all but `agent` if none is named, and wait for them
  kubeconfig [admin|user]   print the path of a kubeconfig (default admin)
  kubectl ARGS..            kubectl as the administrator
  logs [DIR]    print the ends of all logs of nodes and pods, or save them whole in DIR
  list          print the names of the clusters there are
  purge         remove every cluster, the images they are made from and the cache

  NAME is tp-test or what TP_CLUSTER says. TP_CONTEXT=NAME stands for that context of your own kubeconfig, read and
  never written; its images come from TP_REGISTRY, or by `kind load`. CLUSTER=kind makes the cluster with kind.
TEXT
}
set -euo pipefail
. "$(dirname "$0")/../lib.sh"
here=$TP_ROOT_DIR/tests/cluster

save_kubeconfig() { # admin|user COMMAND...
  local kind=$1
  shift
  mkdir -p "$state"
  (umask 077 && "$@" >"$state/$kind.kubeconfig.part" && mv "$state/$kind.kubeconfig.part" "$state/$kind.kubeconfig")
}

# As the administrator, by the node's own kubectl where the cluster is ours.
any_kubectl() {
  if [ "$kind_of_cluster" = own ]; then kube "$@"; else kubectl --kubeconfig "$state/admin.kubeconfig" "$@"; fi
}

manifests() {
  local sample
  for sample in "$@"; do
    [ -e "$here/samples/$sample.yaml" ] || die "no sample $sample in $here/samples"
    sed -e "s|docker.io/local/|$TP_REGISTRY/|; s|:VERSION|:$TP_VERSION|" "$here/samples/$sample.yaml"
    echo ---
  done
}

delete_samples() { manifests web streams db files services programs agent | any_kubectl delete --ignore-not-found -f - >/dev/null; }

# Applies sample manifests, whose images have to be loaded before, and waits until their pods are ready.
samples() {
  [ $# -gt 0 ] || set -- web streams db files services programs
  manifests "$@" | any_kubectl apply -f - >/dev/null
  local namespace kind workload
  any_kubectl get deployments,statefulsets -A \
    -o 'jsonpath={range .items[*]}{.metadata.namespace} {.kind} {.metadata.name}{"\n"}{end}' |
    while read -r namespace kind workload; do
      any_kubectl -n "$namespace" rollout status "$kind/$workload" --timeout=120s </dev/null >/dev/null || {
        any_kubectl -n "$namespace" describe pods </dev/null | tail -n 40 >&2
        die "$namespace/$workload is not ready; its pods are above"
      }
    done
}

command=${1:-help}
[ $# = 0 ] || shift
# shellcheck disable=SC2034 # own.sh's
name=${TP_CLUSTER:-tp-test} nodes=1
pod_cidr=10.244.0.0/16,fd00:10:244::/56 service_cidr=10.96.0.0/16,fd00:10:96::/112
rest=()
[ "$command" != kubectl ] || { rest=("$@") && set --; }
while [ $# -gt 0 ]; do
  case $1 in
    --name | --nodes | --pod-cidr | --service-cidr)
      [ $# -ge 2 ] || die "$1 needs a value"
      option=${1#--}
      printf -v "${option//-/_}" %s "$2"
      shift 2
      ;;
    -*) die "unknown option $1; see \`cluster.sh help\`" ;;
    *) rest+=("$1") && shift ;;
  esac
done
case $name in *[!a-z0-9-]* | -* | '') die "a cluster's name is lower-case letters, digits and dashes, not \`$name\`" ;; esac
case $service_cidr in *.0/*) ;; *) die "the service CIDR must end in .0, not ${service_cidr%%,*}" ;; esac
families() { case $1 in *.*,*:*) echo both ;; *,* | *:*) echo other ;; *) echo ipv4 ;; esac; }
case $(families "$pod_cidr"),$(families "$service_cidr") in
  both,both | ipv4,ipv4) ;;
  *) die "pods and services get an IPv4 CIDR each, or IPv4,IPv6 each, not $pod_cidr and $service_cidr" ;;
esac
state=$TP_CACHE/clusters/$name

# Which kind of cluster it is: a context given, kind, or one of ours.
kind_of_cluster=own
[ "${CLUSTER:-}" != kind ] || kind_of_cluster=kind
[ -z "${TP_CONTEXT:-}" ] || kind_of_cluster=context

. "$(dirname "$0")/own.sh"
. "$(dirname "$0")/adopted.sh"
case $command:$kind_of_cluster in
  up:*)
    "up_$kind_of_cluster"
    echo "$state/admin.kubeconfig"
    echo "$state/user.kubeconfig"
    ;;
  down:own) down_own ;;
  down:*) "down_$kind_of_cluster" ;;
  load:own) load_own "${rest[@]}" ;;
  load:*) load_elsewhere "${rest[@]}" ;;
  kubeconfig:*) echo "$state/${rest[0]:-admin}.kubeconfig" ;;
  samples:*) samples "${rest[@]}" ;;
  kubectl:*) any_kubectl "${rest[@]}" ;;
  logs:own) if [ ${#rest[@]} = 0 ]; then show_logs; else save_logs "${rest[0]}" && say "logs of the cluster $name are in ${rest[0]}"; fi ;;
  logs:*) logs_of_pods -1 ;;
  list:*) list_own ;;
  purge:*) purge ;;
  help:* | -h:* | --help:*) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
