#!/usr/bin/env bash
# Writes the pages of docs/reference from what they describe: the program's own help, the doc comments of its settings,
# the comments of the chart's values. Looks at all pages for links that lead nowhere and options that tp does not have.
#
# usage: tests/docs.sh            writes the pages, then looks
#        tests/docs.sh --check    writes nothing; fails when a page is not what it would be
# The program is dist/tp, or what TP_BIN names.
# shellcheck disable=SC2016,SC2013 # backquotes are Markdown, and words are what is meant
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$TP_ROOT_DIR"
tp=${TP_BIN:-dist/tp}
reference=docs/reference

# tp without the settings, cluster and engine of whoever runs this.
bare_tp() { env -i HOME=/nonexistent DOCKER_HOST=unix:///nonexistent "$work/tp" "$@" | sed 's/ *$//'; }

note() { printf '<!-- Written by tests/docs.sh from %s. -->\n\n' "$1"; }

# --- Commands ---------------------------------------------------------------------------------------------------------

# The commands below COMMAND..., from its help: names of two spaces' indent in a list.
commands_below() {
  if [ $# = 0 ]; then
    bare_tp --help | sed -n 's/^  \([a-z][a-z-]*\)  .*/\1/p'
  else
    bare_tp "$@" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z][a-z-]*\)  .*/\1/p'
  fi
}

cli_section() {
  printf '## tp %s\n\n```text\n' "$*"
  bare_tp "$@" --help
  printf '```\n\n'
}

cli_page() {
  local command below
  note 'the help of each command'
  printf '# Commands\n\nThe help of every command, as `tp COMMAND --help` prints it.\n\n```text\n'
  bare_tp --help
  printf '```\n\n'
  for command in $(commands_below); do
    cli_section "$command"
    for below in $(commands_below "$command"); do cli_section "$command" "$below"; done
  done
}

# --- Settings ---------------------------------------------------------------------------------------------------------

# The fields of `struct Layer` as KEY<tab>MEANING.
setting_meanings() {
  awk '
    /^pub\(crate\) struct Layer/ {inside = 1; next}
    inside && /^}/ {exit}
    inside && /^ *\/\/\/ / {sub(/^ *\/\/\/ /, ""); text = text (text == "" ? "" : " ") $0}
    inside && /^ *pub/ {
      match($0, /[a-z_]+:/)
      key = substr($0, RSTART, RLENGTH - 1)
      gsub("_", "-", key)
      print key "\t" text
      text = ""
    }' client/src/config.rs
}

# The option of connect or docker-run that sets KEY; --network adds to the key `networks`.
option_for() {
  local command
  for command in connect docker-run; do
    bare_tp "$command" --help | grep -oE -- "--(${1}|${1%s})( |\$)" | head -n 1 | tr -d ' ' | grep . && return
  done
  echo ''
}

# What the help gives as default, which can be more than a value; else the value itself.
default_of() {
  local told
  told=$(bare_tp connect --help | tr -s ' \n' ' ' | sed 's/ --/\n--/g' | sed -n "s/^--$1 .*\[default: \([^]]*\)\].*/\1/p")
  case $told in
    '') bare_tp config view --output json | jq -r --arg key "$1" '.[$key].value | if . == [] then "none" else "`\(.)`" end' ;;
    *\ *) echo "$told" ;;
    *) echo "\`$told\`" ;;
  esac
}

config_page() {
  local key meaning option
  note 'client/src/config.rs and the help of the commands'
  cat <<'TEXT'
# Settings

Where settings can be made, and which place wins: [Settings](../settings.md). Durations read `500ms`, `60s`, `12h`, `1h30m`.

| Key | Meaning | Default | Variable | Option |
|---|---|---|---|---|
TEXT
  setting_meanings | while IFS=$'\t' read -r key meaning; do
    option=$(option_for "$key")
    printf '| `%s` | %s | %s | `TP_%s` | %s |\n' "$key" "${meaning%.}" "$(default_of "$key")" \
      "$(tr a-z- A-Z_ <<<"$key")" "${option:+\`$option\`}"
  done
}

# --- Chart ------------------------------------------------------------------------------------------------------------

# Keys with a `# --` comment, by section; other comments above a section become its text.
chart_page() {
  note 'manager/chart/values.yaml'
  awk '
    function end_entry() {
      if (key == "") return
      if (value == "") value = nested
      row = "| `" key "` | " (value == "\"\"" ? "" : "`" value "`") " | " meaning " |\n"
      if (index(key, ".")) rows = rows row; else others = others row
      key = value = nested = meaning = ""
    }
    function end_section() {
      end_entry()
      if (rows != "") printf "## %s\n\n%s%s%s\n", section, (about == "" ? "" : about "\n"), head, rows
      section = rows = about = ""
    }
    BEGIN {
      head = "| Key | Default | Meaning |\n|---|---|---|\n"
      print "# Values of the chart\n"
      print "Give them to `tp helm install` or `tp helm upgrade` with `--set KEY=VALUE` or `--values FILE`.\n"
    }
    /^$/ {prose = ""; next}
    /^ *# -- / {sub(/^ *# -- /, ""); gsub(/\|/, "\\|"); text = $0; next}
    /^# / {sub(/^# /, ""); prose = prose $0 "\n"; next}
    /^ *[A-Za-z]+:/ {
      indent = match($0, /[^ ]/) - 1
      name = rest = $0
      sub(/^ */, "", name); sub(/:.*/, "", name)
      sub(/^[^:]*: ?/, "", rest)
      if (text != "") {
        if (indent == 0) end_section(); else end_entry()
        key = (indent == 0 ? "" : section ".") name
        base = indent; value = rest; meaning = text; text = ""
      } else if (key != "" && indent > base) {
        path[indent] = name
        full = path[base + 2]
        for (i = base + 4; i <= indent; i += 2) full = full "." path[i]
        if (rest != "") nested = nested (nested == "" ? "" : ", ") full ": " rest
      } else {
        end_section()
        section = name; about = prose; prose = ""
      }
    }
    END {
      end_section()
      printf "## Others\n\n%s%s", head, others
    }' manager/chart/values.yaml
}

# --- All pages --------------------------------------------------------------------------------------------------------

# GitHub's anchors of the headings of FILE.
anchors_of() {
  sed -n '/^```/,/^```/d; s/^##* //p' "$1" | tr '[:upper:]' '[:lower:]' | sed 's/[^a-z0-9 _-]//g; s/ /-/g'
}

# Links to files and headings of this repository, outside of code.
look_at_links() {
  local page target file anchor bad=0
  for page in "$@"; do
    while read -r target; do
      file=${target%%#*} anchor=
      [[ $target != *#* ]] || anchor=${target#*#}
      file=${file:+$(dirname "$page")/$file}
      file=${file:-$page}
      if [ ! -e "$file" ]; then
        echo "$page: no such file: $target" && bad=1
      elif [ -n "$anchor" ] && ! anchors_of "$file" | grep -qx -- "$anchor"; then
        echo "$page: no such heading: $target" && bad=1
      fi
    done < <(sed '/^```/,/^```/d' "$page" | grep -oE '\]\([^)]+\)|(src|href)="[^"]+"' | sed -E 's/^\]\(//; s/\)$//; s/^[a-z]+="//; s/"$//' | grep -vE '^(https?|mailto):')
  done
  return "$bad"
}

# Options of tp in commands, `tp COMMAND ... --option`, of which the program knows nothing. What docker-run and helm pass on
# is not tp's.
look_at_options() {
  local page line command option known bad=0
  for page in "$@"; do
    while read -r line; do
      command=$(awk '{print $2}' <<<"$line")
      case $command in '' | docker-run | helm | -* | [A-Z]*) continue ;; esac
      known=$(bare_tp "$command" --help 2>/dev/null || true)
      [ -n "$known" ] || { echo "$page: no such command: $line" && bad=1 && continue; }
      [[ $command != config ]] || known+=$(bare_tp config view --help)
      for option in $(grep -oE -- ' --[a-z][a-z-]*' <<<"${line%% -- *}"); do
        grep -qE -- "$option\b" <<<"$known" || { echo "$page: $command has no $option: $line" && bad=1; }
      done
    done < <(grep -oE '(^|[`$] ?)tp [a-z][^`#|;&]*' "$page" | sed 's/^[`$ ]*//')
  done
  return "$bad"
}

# ----------------------------------------------------------------------------------------------------------------------

write=yes
case ${1:-} in
  '') ;;
  --check) write= ;;
  *) die 'usage: tests/docs.sh [--check]' ;;
esac
[ -x "$tp" ] || die "no program at $tp: \`make build\` makes it"

stale=
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$(realpath "$tp")" "$work/tp" # the help calls the program by its file's name
for page in cli config chart; do
  "${page}_page" >"$work/$page.md"
  # One newline at the end, however the last section ended.
  sed -i -e :a -e '/^\n*$/{$d;N;ba' -e '}' "$work/$page.md"
  if [ -n "$write" ]; then
    mkdir -p "$reference"
    cp "$work/$page.md" "$reference/$page.md"
  elif ! diff -u --label "$reference/$page.md" --label 'as it should be' "$reference/$page.md" "$work/$page.md"; then
    stale=yes
  fi
done

mapfile -t pages < <(git ls-files --cached --others --exclude-standard 'README.md' 'ARCHITECTURE.md' 'docs/*.md' 'docs/**/*.md' 'compose/**/*.md')
look_at_links "${pages[@]}" || stale=links
look_at_options "${pages[@]}" || stale=options
case $stale in
  '') ;;
  yes) die 'pages of docs/reference are out of date: run tests/docs.sh' ;;
  *) die "pages have wrong $stale, above" ;;
esac
