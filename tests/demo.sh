#!/usr/bin/env bash
# Shows the product from a fresh machine to a container that sees a real cluster, each step with the command that a user
# types and its real output. A step whose output is not what it should be ends the demo with an error.
# The cluster is brought up for the demo and removed at its end; with TP_CONTEXT=NAME it is that of your kubeconfig.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
export TP_CLUSTER=${TP_CLUSTER:-tp-demo}
cluster=$TP_ROOT_DIR/tests/cluster/cluster.sh
image=tp-debian-services:2
cd "$TP_ROOT_DIR"

title() { printf '\n%s# %s%s\n' "$BOLD" "$*" "$PLAIN"; }

# Prints a command as it would be typed.
prompt() {
  local word line='$'
  for word in "$@"; do
    case $word in *[!a-zA-Z0-9_./:=@,%+-]* | '') line+=" '$word'" ;; *) line+=" $word" ;; esac
  done
  printf '\n%s%s%s\n' "$GREEN" "$line" "$PLAIN"
}

# Runs a command and expects what it prints to contain a text: shows TEXT COMMAND...
shows() {
  local expected=$1 output=$TP_ROOT_DIR/.tmp/demo.out status=0
  shift
  prompt "$@"
  "$@" </dev/null 2>&1 | tee "$output" || status=$?
  [ "$status" = 0 ] || die "that command ended with exit code $status"
  grep -qF -- "$expected" "$output" || die "that command was expected to print \`$expected\`"
}

# What a failed step leaves for whoever looks for the reason, and what every end takes away.
finish() {
  local status=$?
  trap - EXIT
  if [ "$status" != 0 ] && [ -n "${cluster_is_up:-}" ]; then
    "$cluster" logs "$TP_ROOT_DIR/.tmp/demo-logs" || true
  fi
  docker rm --force tp-demo-handler >/dev/null 2>&1 || true
  [ ! -x dist/tp ] || dist/tp quit --use "$TP_CLUSTER" >/dev/null 2>&1 || true
  if [ -n "${cluster_is_up:-}" ]; then
    [ -z "${rights_are_given:-}" ] || KUBECONFIG=$admin kubectl -n shop delete role,rolebinding tp-engage >/dev/null 2>&1 || true
    [ -z "${TP_CONTEXT:-}" ] || KUBECONFIG=$admin dist/tp helm uninstall >/dev/null 2>&1 || true
    "$cluster" down || true
  fi
  rm -f "$TP_ROOT_DIR/.tmp/demo.out"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM
mkdir -p .tmp

title 'What this machine needs'
prompt tests/preflight.sh
tests/preflight.sh

title 'Build: static binaries, and images of nothing but them'
prompt make images
tests/build.sh
tests/images.sh
ls -sh1 dist >&2
export PATH=$TP_ROOT_DIR/dist:$PATH

title 'A real cluster'
prompt "${cluster#"$TP_ROOT_DIR/"}" up
cluster_is_up=yes
"$cluster" up
admin=$("$cluster" kubeconfig admin)
user=$("$cluster" kubeconfig user)
"$cluster" load {tp-manager,tp-agent,tp-sample}":$TP_VERSION" "$image"
"$cluster" samples

title 'The administrator installs the manager, once'
export KUBECONFIG=$admin
prompt export "KUBECONFIG=$KUBECONFIG"
shows '' tp helm install --set "image.registry=$TP_REGISTRY"
"$cluster" samples agent

title 'A developer, who may port-forward to the manager and do nothing else'
export KUBECONFIG=$user
prompt export "KUBECONFIG=$KUBECONFIG"
# A connection is called after its context, ours after the cluster; it is no other's business that you may have.
connect=(tp connect)
[ -z "${TP_CONTEXT:-}" ] || connect+=(--name "$TP_CLUSTER")
shows "Connected to context" "${connect[@]}"
export TP_CONNECTION=$TP_CLUSTER
shows "$TP_CLUSTER (tp-$TP_CLUSTER): connected" tp status

title 'A container on this machine, in the network of the cluster'
shows '"name":"web"' tp docker-run --rm "$image" curl -s http://web.default.svc.cluster.local/
shows '"name":"web"' tp docker-run --rm "$image" curl -s http://web/
shows PONG tp docker-run --rm "$image" redis-cli -h redis ping
shows 'hello from PostgreSQL' tp docker-run --rm -e PGPASSWORD=app "$image" \
  psql --host postgres --user app --command 'SELECT * FROM greetings'
shows tp-agent tp status

title 'The administrator lets the developer engage what is in a namespace'
KUBECONFIG=$admin shows created kubectl -n shop create role tp-engage --verb=create --resource=pods/exec
KUBECONFIG=$admin shows created kubectl -n shop create rolebinding tp-engage --role=tp-engage --user=developer \
  --serviceaccount=tp-system:developer
rights_are_given=yes

title 'Requests of one person arrive in a container on this machine, all others where they did'
shows '' tp docker-run -d --rm --name tp-demo-handler "tp-sample:$TP_VERSION" serve --name 'this machine'
shows 'Intercepting deployment/web' tp intercept web --namespace shop --port 8080 --http-header x-user=ann
asks=(kubectl -n default exec deploy/redis -- curl -s http://web.shop/)
# Nodes follow a changed Service in their own time.
for _ in {1..50}; do
  [[ $(KUBECONFIG=$admin "${asks[@]}" -H 'x-user: ann') != *'this machine'* ]] || break
done
KUBECONFIG=$admin shows '"name":"this machine"' "${asks[@]}" -H 'x-user: ann'
KUBECONFIG=$admin shows '"name":"web of shop"' "${asks[@]}"
shows 'deployment/web' tp list --namespace shop
shows '' tp leave web
docker stop tp-demo-handler >/dev/null

title 'Gone again'
shows '' tp quit
unset TP_CONNECTION

title 'Without a connection, docker-run makes its own and ends it'
context=${TP_CONTEXT:-$TP_CLUSTER}
shows '"name":"web of shop"' tp docker-run --rm --context "$context" "$image" curl -s http://web.shop/
[ -z "$(docker ps -aq --filter "label=tp.connection=$TP_CLUSTER")" ] || die "a container of the connection is still there"

title "Done in $SECONDS s"
