#!/bin/bash
# PID 1 of a node container: certificates, containerd, the Kubernetes components and, on the first node, etcd and
# CoreDNS. /etc/k8s/ready appears once the node is Ready. All output is in /var/log/k8s.
#
# In the environment: CLUSTER (its name), POD_CIDR, SERVICE_CIDR (IPv4, or IPv4,IPv6); on further nodes CONTROL_PLANE
# (address of the first), whose CA the caller then copies to /etc/k8s.
set -eu
mkdir -p /var/log/k8s /etc/k8s /etc/containerd /etc/cni/net.d
exec >/var/log/k8s/node.log 2>&1
set -x
cd /etc/k8s
name=$(hostname)
ip=$(hostname -i | cut -d' ' -f1)
server=https://${CONTROL_PLANE:-$ip}:6443
# 10.96.0.0/16 -> 10.96.0.1 (the API server's Service) and 10.96.0.10 (DNS).
service_net=${SERVICE_CIDR%%/*}
service_net=${service_net%0}
dns=${service_net}10

run() { # NAME COMMAND...: starts a component with a log of its own
  local log=/var/log/k8s/$1.log
  shift
  "$@" >"$log" 2>&1 &
}

# --- The container as a machine -----------------------------------------------------------------------------------

[ -e /etc/machine-id ] || tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
mount --make-rshared / # containers mount into pods

# The cgroup namespace is the container's own: whatever is made below its root goes when the container goes.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then # v2
  mount -o remount,bind,rw /sys/fs/cgroup
  mkdir -p /sys/fs/cgroup/node # a group with children may hold no process itself
  xargs -rn1 </sys/fs/cgroup/cgroup.procs >/sys/fs/cgroup/node/cgroup.procs || true
  sed 's/\([a-z]\+\)/+\1/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
else # v1, a mount per controller
  mount -o remount,bind,rw /sys/fs/cgroup || true
  awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts | while read -r group; do
    mount -o remount,bind,rw "$group"
  done
fi

# The kubelet insists on these values, and they belong to the whole machine: let it read them without setting them.
mkdir -p /run/kernel-tunables
for tunable in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  path=${tunable%=*}
  copy=/run/kernel-tunables/${path//\//.}
  echo "${tunable#*=}" >"$copy"
  mount --bind "$copy" "/proc/sys/$path"
done

# The engine turns IPv6 off in containers of its default network. Only pods and Services have it: the node's own address
# is an IPv4 one. Nobody else can have a pod's address: looking for duplicates, at either end of a veth pair, would only
# cost one to two seconds per pod. What comes before a pod's interface is made has to be a plugin with a result.
before=''
case $POD_CIDR in
  *:*)
    echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6
    echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
    before='{"type": "loopback"}, {"type": "tuning", "sysctl": {"net.ipv6.conf.default.accept_dad": "0"}},'
    ;;
esac

# --- Certificates, kubeconfigs ------------------------------------------------------------------------------------

set +x # keys and tokens stay out of the log
new_key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
sign() { # FILE SUBJECT ALTERNATIVE-NAMES
  openssl req "${new_key[@]}" -subj "$2" -keyout "$1.key" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -set_serial "0x$(openssl rand -hex 16)" -days 3650 \
    -out "$1.crt" -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$3")
}
kubeconfig() { # FILE, and the user's credential in YAML
  cat >"$1" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: $CLUSTER
  cluster: {server: "$server", certificate-authority-data: $(base64 -w0 ca.crt)}
users:
- name: ${1%.conf}
  user: {$2}
contexts:
- name: $CLUSTER
  context: {cluster: $CLUSTER, user: ${1%.conf}}
current-context: $CLUSTER
YAML
}
certificate_user() { # FILE without .crt
  kubeconfig "$1.conf" "client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")"
}

if [ -z "${CONTROL_PLANE:-}" ]; then
  openssl req -x509 "${new_key[@]}" -days 3650 -subj "/CN=$CLUSTER" -keyout ca.key -out ca.crt
  openssl ecparam -name prime256v1 -genkey -noout -out sa.key
  openssl ec -in sa.key -pubout -out sa.pub
  sans=DNS:localhost,IP:127.0.0.1,IP:$ip,IP:${service_net}1
  sign apiserver /CN=kube-apiserver \
    "$sans,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
  sign admin /O=system:masters/CN=admin DNS:admin
  certificate_user admin
  # The plain user: a token and a name; what it may do is in rights.yaml.
  token=$(openssl rand -hex 24)
  echo "$token,developer,developer" >tokens.csv
  kubeconfig developer.conf "token: $token"
else
  until [ -s ca.key ] && [ -s ca.crt ]; do sleep 0.1; done
fi
sign kubelet "/O=system:nodes/CN=system:node:$name" "DNS:$name,IP:$ip"
sign proxy /CN=system:kube-proxy DNS:kube-proxy
certificate_user kubelet
certificate_user proxy
set -x

# --- Components ---------------------------------------------------------------------------------------------------

cat >/etc/containerd/config.toml <<'TOML'
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/local/pause:1"
  restrict_oom_score_adj = true # it cannot be lowered without SYS_RESOURCE
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
TOML
run containerd containerd

if [ -z "${CONTROL_PLANE:-}" ]; then
  run etcd etcd --data-dir /var/lib/etcd/data --unsafe-no-fsync \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379
  run apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address="$ip" --allow-privileged=true \
    --tls-cert-file=apiserver.crt --tls-private-key-file=apiserver.key \
    --client-ca-file=ca.crt --token-auth-file=tokens.csv --authorization-mode=Node,RBAC \
    --enable-admission-plugins=NodeRestriction --service-cluster-ip-range="$SERVICE_CIDR" \
    --service-account-key-file=sa.pub --service-account-signing-key-file=sa.key \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --kubelet-client-certificate=admin.crt --kubelet-client-key=admin.key --kubelet-certificate-authority=ca.crt
  run controller-manager kube-controller-manager --kubeconfig=admin.conf --leader-elect=false \
    --service-account-private-key-file=sa.key --root-ca-file=ca.crt --kube-api-qps=200 --kube-api-burst=400 \
    --allocate-node-cidrs=true --cluster-cidr="$POD_CIDR" --service-cluster-ip-range="$SERVICE_CIDR"
  run scheduler kube-scheduler --kubeconfig=admin.conf --leader-elect=false
fi

cat >kubelet.yaml <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /etc/k8s/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: /etc/k8s/kubelet.crt
tlsPrivateKeyFile: /etc/k8s/kubelet.key
clusterDNS: [$dns]
clusterDomain: cluster.local
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
maxPods: 250
# The disk is the workstation's: its being nearly full is no reason to evict pods or to drop images.
evictionHard: {nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
YAML
until ctr -n k8s.io images import /opt/pause.tar; do sleep 0.2; done
run kubelet kubelet --kubeconfig=kubelet.conf --config=kubelet.yaml --hostname-override="$name" --node-ip="$ip"

# --- Pod network: routed veth pairs on the subnets that the controller manager gave to this node ---------------------

node() { kubectl --kubeconfig=kubelet.conf get node "$name" "$@"; }
until cidrs=$(node -o 'jsonpath={.spec.podCIDRs[*]}') && [ -n "$cidrs" ]; do sleep 0.2; done
run kube-proxy kube-proxy --kubeconfig=proxy.conf --cluster-cidr="$POD_CIDR" --hostname-override="$name" \
  --conntrack-max-per-core=0 # the connection table's size is the machine's

ranges='' routes=''
for cidr in $cidrs; do
  ranges+="${ranges:+,}[{\"subnet\":\"$cidr\"}]"
  case $cidr in *:*) any=::/0 ;; *) any=0.0.0.0/0 ;; esac
  routes+="${routes:+,}{\"dst\":\"$any\"}"
done
# Pods keep their addresses on the way to other pods: only what leaves the cluster is masqueraded.
for cidr in ${POD_CIDR/,/ }; do
  case $cidr in *:*) tables=ip6tables ;; *) tables=iptables ;; esac
  "$tables" -t nat -A POSTROUTING -s "$cidr" ! -d "$cidr" -j MASQUERADE
done
cat >/etc/cni/net.d/pods.tmp <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [$before
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "ranges": [$ranges], "routes": [$routes]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
mv /etc/cni/net.d/pods.tmp /etc/cni/net.d/10-pods.conflist

# --- DNS ----------------------------------------------------------------------------------------------------------

if [ -z "${CONTROL_PLANE:-}" ]; then
  # Without an upstream server that answers, every name that is not the cluster's is NXDOMAIN at once.
  others='template ANY ANY {
        rcode NXDOMAIN
        authority ". 5 IN SOA ns.invalid. root.invalid. 1 60 60 60 5"
      }'
  if timeout 3 getent ahostsv4 deb.debian.org; then others='forward . /etc/resolv.conf'; fi
  manifest=$(</opt/coredns.yaml)
  manifest=${manifest//@DNS@/$dns}
  kubectl --kubeconfig=admin.conf apply -f - <<<"${manifest//@OTHERS@/"$others"}"
fi
until node -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' | grep -q True; do sleep 0.2; done
touch ready
wait
