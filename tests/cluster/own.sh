# shellcheck shell=bash
# A cluster of our own, a Docker container per node (node/ has what runs in it). Sourced by cluster.sh.
# shellcheck disable=SC2154 # name, nodes, state, here, pod_cidr, service_cidr are cluster.sh's

LABEL=tp-test.cluster # not one of the product's own labels, by which it removes things

# All capabilities but SYS_RESOURCE, which not every machine can give, as --privileged asks for.
CAPABILITIES='AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK
  IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW SETFCAP
  SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_TIME
  SYS_TTY_CONFIG WAKE_ALARM'

# --- Nodes --------------------------------------------------------------------------------------------------------

node_name() { echo "$name-$1"; }
nodes() { docker ps -a --filter "label=$LABEL=$name" --format '{{.Names}}' | sort -V; }
node_ip() { docker inspect -f '{{.NetworkSettings.IPAddress}}' "$1"; }
in_node() { docker exec -i "$@"; }
first_node() { node_name 1; }
kube() { in_node "$(first_node)" kubectl "$@"; }

start_node() { # NAME [ENV...]
  local node=$1 args=(--cgroupns private --tmpfs /run) capability variable limit volume
  shift
  for capability in $CAPABILITIES; do args+=(--cap-add "$capability"); done
  for variable in "$@"; do args+=(-e "$variable"); done
  for limit in seccomp apparmor systempaths; do args+=(--security-opt "$limit=unconfined"); done
  for volume in containerd kubelet etcd; do args+=(-v "/var/lib/$volume"); done # not on the container's overlay
  docker run -d "${args[@]}" --device-cgroup-rule 'a *:* rwm' --device /dev/kmsg --device /dev/fuse --device /dev/net/tun \
    --label "$LABEL=$name" --name "$node" --hostname "$node" -e "CLUSTER=$name" -e "POD_CIDR=$pod_cidr" \
    -e "SERVICE_CIDR=$service_cidr" "$image" >/dev/null || die "cannot start the node $node: see the engine's message above"
}

node_is_ready() { in_node "$1" test -e /etc/k8s/ready >/dev/null 2>&1; }

wait_for_node() {
  local deadline=$((SECONDS + 120))
  until node_is_ready "$1"; do
    [ "$(docker inspect -f '{{.State.Running}}' "$1")" = true ] || fail_with_logs "the node $1 ended"
    [ "$SECONDS" -lt "$deadline" ] || fail_with_logs "the node $1 was not ready within 120 s"
    sleep 0.2
  done
}

fail_with_logs() {
  show_logs >&2
  die "$1; the ends of its logs are above"
}

# A /24 and a /64 of the pods' networks are on each node; every node knows the way to the others'. The engine's network
# has no IPv6, so that the next hop is a node's link-local address.
connect_nodes() {
  local all from to cidr via
  all=$(nodes)
  [ "$(wc -w <<<"$all")" -gt 1 ] || return 0
  for to in $all; do
    for cidr in $(kube get node "$to" -o 'jsonpath={.spec.podCIDRs[*]}'); do
      case $cidr in
        *:*) via=$(in_node "$to" ip -6 -o address show dev eth0 scope link | awk '{sub("/.*", "", $4); print $4}') ;;
        *) via=$(node_ip "$to") ;;
      esac
      for from in $all; do
        [ "$from" = "$to" ] || in_node "$from" ip route replace "$cidr" via "$via" dev eth0
      done
    done
  done
}

add_node() {
  local node=$1 first file
  first=$(first_node)
  start_node "$node" "CONTROL_PLANE=$(node_ip "$first")"
  for file in ca.crt ca.key; do # the key last: the node waits for both
    in_node "$first" cat "/etc/k8s/$file" | in_node "$node" sh -c "cat >/etc/k8s/$file.part && mv /etc/k8s/$file.part /etc/k8s/$file"
  done
}

is_healthy() {
  [ "$(docker inspect -f '{{.State.Running}}' "$(first_node)" 2>/dev/null)" = true ] && node_is_ready "$(first_node)" &&
    kube get --raw /readyz >/dev/null 2>&1
}

# --- Commands -----------------------------------------------------------------------------------------------------

up_own() {
  need_docker
  lock "cluster-$name"
  image=$("$here/node-image.sh")
  if is_healthy; then
    [ "$(docker inspect -f '{{.Config.Image}}' "$(first_node)")" = "$image" ] ||
      say "the cluster $name runs an earlier node image; \`cluster.sh down --name $name\` first, to have the new one"
  else
    step "bringing up Kubernetes in the container $(first_node)"
    down_own
    ! docker inspect "$(first_node)" >/dev/null 2>&1 ||
      die "a container $(first_node) exists and is not a test cluster's: remove it, or choose another --name"
    start_node "$(first_node)"
  fi
  wait_for_node "$(first_node)"
  local i
  for ((i = 2; i <= nodes; i++)); do
    docker inspect "$(node_name "$i")" >/dev/null 2>&1 || add_node "$(node_name "$i")"
  done
  for ((i = 2; i <= nodes; i++)); do wait_for_node "$(node_name "$i")"; done
  connect_nodes
  kube -n kube-system rollout status deploy/coredns --timeout=60s >/dev/null || fail_with_logs "CoreDNS is not ready"
  save_kubeconfig admin in_node "$(first_node)" cat /etc/k8s/admin.conf
  save_kubeconfig user in_node "$(first_node)" cat /etc/k8s/developer.conf
  kube apply -f - <"$here/rights.yaml" >/dev/null
}

down_own() {
  local all
  all=$(nodes)
  # shellcheck disable=SC2086 # names of ours, without spaces
  [ -z "$all" ] || docker rm -fv $all >/dev/null
  rm -rf "$state"
}

load_own() {
  local node id mark ref short full
  for node in $(nodes); do
    for ref in "$@"; do
      id=$(docker image inspect -f '{{.Id}}' "$ref") || die "no image $ref in the engine: run \`make images\`"
      short=${ref##*/}
      case $ref in */*) full=docker.io/$ref ;; *) full=docker.io/library/$ref ;; esac
      mark=/var/lib/kubelet/loaded-${short//[:\/]/_}
      [ "$(in_node "$node" cat "$mark" 2>/dev/null)" != "$id" ] || continue
      docker save "$ref" | in_node "$node" ctr -n k8s.io images import - >/dev/null
      in_node "$node" sh -c "ctr -n k8s.io images tag --force '$full' '$TP_REGISTRY/$short' &&
        echo '$id' >'$mark'" >/dev/null
      say "loaded $TP_REGISTRY/$short into $node"
      restart_pods_of "$TP_REGISTRY/$short"
    done
  done
}

# The name is the same, the content is not: pods that run the earlier one are replaced by their controllers.
restart_pods_of() {
  local namespace pod
  kube get pods -A -o 'jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name} {.spec.containers[*].image}{"\n"}{end}' |
    grep -F " $1" | while read -r namespace pod _; do
    kube -n "$namespace" delete pod "$pod" --wait=false </dev/null >&2
  done || true
}

logs_of_pods() {
  local namespace pod
  kube get pods -A -o wide || return 0
  kube get events -A --sort-by=.lastTimestamp | tail -n 50
  kube get pods -A -o 'jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{"\n"}{end}' |
    while read -r namespace pod; do
      echo "--- pod $namespace/$pod"
      kube -n "$namespace" logs "$pod" --all-containers --prefix --tail="$1" </dev/null 2>&1 || true
    done
}

# Copied rather than read in the node, which may have ended.
save_logs() { # DIR
  local node
  mkdir -p "$1"
  for node in $(nodes); do
    docker cp "$node:/var/log/k8s" "$1/$node" >/dev/null 2>&1 || say "no logs of the node $node"
  done
  logs_of_pods "${2:--1}" >"$1/pods.log" 2>&1
}

show_logs() {
  local copy file
  copy=$(mktemp -d)
  save_logs "$copy" 15
  for file in "$copy"/*/*.log; do
    echo "--- ${file#"$copy/"}"
    tail -n 15 "$file" | cut -c 1-400
  done
  cat "$copy/pods.log"
  rm -rf "$copy"
}

list_own() { docker ps -a --filter "label=$LABEL" --format "{{.Label \"$LABEL\"}}" | sort -u; }

purge() {
  need_docker
  for name in $(list_own); do down_own; done
  local repository
  for repository in tp-test-node{,-base} tp-debian-{runtimes,services,services-base,services-base-apart}; do
    docker image ls -q "$repository" | sort -u | xargs -r docker rmi -f >/dev/null
  done
  rm -rf "$TP_CACHE"
}
