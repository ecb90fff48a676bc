#!/usr/bin/env bash
# Runs a session with tp on the cluster of KUBECONFIG (with the samples in it: `make cluster`) and draws it as
# docs/demo.svg: the commands below and what they really print. NAME is what the cluster's context is called in it.
#
# usage: tests/docs-svg.sh [NAME]
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$TP_ROOT_DIR"
name=${1:-staging}
tp=${TP_BIN:-$TP_ROOT_DIR/dist/tp}
image=${TP_E2E_CLIENT_IMAGE:-tp-debian-services:2} # Debian with curl, redis-cli and psql

# What is typed. The image is one that users do not have: it gets a name that says what it is.
session() {
  cat <<'TEXT'
# A container on this machine, in the cluster's network. Nothing was connected before, nothing is left behind.
tp docker-run --rm toolbox psql postgres://app:app@postgres/app -c 'SELECT * FROM greetings'

# Or connect once, for as many containers as you like.
tp connect --name demo
tp docker-run --rm toolbox curl -sS -o /dev/null -w '%{http_code} from %{remote_ip}\n' http://web.shop/
docker run --rm --network container:tp-demo toolbox redis-cli -h redis ping
tp status
tp quit
TEXT
}

# The session with its output: `$ ` begins a command, `# ` a comment. Other connections of this engine stay out of it.
play() {
  local line
  export TP_CONTEXT=$name
  session | while IFS= read -r line; do
    case $line in
      '' | '#'*) printf '%s\n' "$line" ;;
      *)
        printf '$ %s\n' "$line"
        bash -c "$line" </dev/null 2>&1
        [[ $line != 'tp connect --name demo' ]] || export TP_CONNECTION=demo
        ;;
    esac
  done
}

# Draws the text on standard input as a terminal. The advance of a character is 0.6 em in all common monospaced fonts.
draw() {
  awk '
    function escaped(text) {gsub(/&/, "\\&amp;", text); gsub(/</, "\\&lt;", text); gsub(/>/, "\\&gt;", text); return text}
    {
      sub(/[ \t\r]+$/, "")
      line[NR] = $0
      if (length($0) > columns) columns = length($0)
    }
    END {
      size = 14; advance = 8.43; leading = 20; side = 22; top = 62
      width = int(columns * advance + 2 * side); height = top + NR * leading + 4
      printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\">\n", width, height, width, height
      print "<title>A session with tp in a terminal</title>"
      print "<style>text{font:14px ui-monospace,SFMono-Regular,Menlo,\"DejaVu Sans Mono\",\"Liberation Mono\",Consolas,monospace;fill:#c9d1d9;white-space:pre}.c{fill:#8b949e}.p{fill:#3fb950}.i{fill:#f0f6fc;font-weight:600}</style>"
      printf "<rect width=\"%d\" height=\"%d\" rx=\"10\" fill=\"#0d1117\"/>\n", width, height
      printf "<path d=\"M0 36V10A10 10 0 0 1 10 0H%dA10 10 0 0 1 %d 10V36Z\" fill=\"#21262d\"/>\n", width - 10, width
      split("#ff5f57 #febc2e #28c840", lights, " ")
      for (i = 1; i <= 3; i++) printf "<circle cx=\"%d\" cy=\"18\" r=\"6\" fill=\"%s\"/>\n", 2 + i * 20, lights[i]
      for (i = 1; i <= NR; i++) {
        if (line[i] == "") continue
        printf "<text xml:space=\"preserve\" x=\"%d\" y=\"%d\"", side, top + (i - 1) * leading
        if (line[i] ~ /^\$ /) printf "><tspan class=\"p\">$</tspan><tspan class=\"i\"> %s</tspan></text>\n", escaped(substr(line[i], 3))
        else if (line[i] ~ /^#/) printf " class=\"c\">%s</text>\n", escaped(line[i])
        else printf ">%s</text>\n", escaped(line[i])
      }
      print "</svg>"
    }'
}

[ -x "$tp" ] || die "no program at $tp: \`make build\` makes it"
[ -n "${KUBECONFIG:-}" ] || die "no KUBECONFIG: \`make cluster\` makes a cluster and prints the line to set it"
work=$(mktemp -d)
trap 'rm -rf "$work"; docker rmi toolbox:latest >/dev/null 2>&1 || true' EXIT
docker tag "$image" toolbox:latest
mkdir "$work/bin"
ln -s "$tp" "$work/bin/tp"
(umask 077 && kubectl config view --raw --flatten --minify >"$work/kubeconfig")
export PATH=$work/bin:$PATH KUBECONFIG=$work/kubeconfig HOME=$work
kubectl config rename-context "$(kubectl config current-context)" "$name" >/dev/null
play | cat -s >"$work/session" || { cat "$work/session" >&2 && die "a command of the session failed"; }
cat "$work/session"
draw <"$work/session" >docs/demo.svg
