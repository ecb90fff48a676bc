# shellcheck shell=bash
# Debian images made here instead of pulled. Sourced by the scripts that need one, after lib.sh.

DEBIAN_SUITE=bookworm

# Not in the images: what is there for people only, and the compiler that PostgreSQL can do without (150 MB).
DEBIAN_LEFT_OUT=('dev/*' 'var/cache/apt/*' 'var/lib/apt/lists/*' 'usr/share/doc/*' 'usr/share/man/*' 'usr/share/locale/*'
  'usr/lib/*/libLLVM*' 'usr/lib/*/libz3*' 'usr/lib/postgresql/*/lib/llvmjit*' 'usr/lib/postgresql/*/lib/bitcode')

# What of the packages is put into an image of its own, so that the other stays small; see apart_image.
DEBIAN_APART=()

# Prints the name of the image that holds what debian_image put apart: apart_image IMAGE
apart_image() { echo "${1/:/-apart:}"; }

# Prints the name of an image with Debian's minimal system and the given packages, and makes it first if it is not
# there (a good minute): debian_image REPOSITORY PACKAGE...
debian_image() {
  local repository=$1 image rootfs
  shift
  image=$repository:$(hash_of <<<"$DEBIAN_SUITE $* ${DEBIAN_LEFT_OUT[*]}${DEBIAN_APART[*]/#/ }")
  docker image inspect "$image" >/dev/null 2>&1 || {
    have debootstrap || die "no debootstrap on PATH: run \`tests/preflight.sh\`, which installs it"
    step "making a Debian image for $repository (about a minute, once)"
    mkdir -p "$TP_CACHE/debs"
    rootfs=$TP_CACHE/rootfs-$repository # one that was broken off may lie there
    remove_rootfs "$rootfs"
    as_root debootstrap --variant=minbase --cache-dir="$TP_CACHE/debs" --include="$(tr ' ' , <<<"$*")" \
      "$DEBIAN_SUITE" "$rootfs" "${TP_DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$TP_CACHE/debootstrap.log" 2>&1 || {
      tail -n 20 "$TP_CACHE/debootstrap.log" >&2
      remove_rootfs "$rootfs"
      die "debootstrap failed; its output is in $TP_CACHE/debootstrap.log. A mirror that is reachable: TP_DEBIAN_MIRROR=URL"
    }
    if [ ${#DEBIAN_APART[@]} -gt 0 ]; then
      # shellcheck disable=SC2046,SC2068 # patterns without spaces, to be expanded
      (cd "$rootfs" && as_root tar -c $(without "${DEBIAN_LEFT_OUT[@]}") $(printf './%s ' ${DEBIAN_APART[@]})) |
        docker import - "$(apart_image "$image")" >/dev/null
      remove_other_tags "$(apart_image "$image")"
    fi
    # shellcheck disable=SC2046 # patterns without spaces
    as_root tar -C "$rootfs" -c $(without "${DEBIAN_LEFT_OUT[@]}" "${DEBIAN_APART[@]}") . | docker import - "$image" >/dev/null
    remove_rootfs "$rootfs"
    remove_other_tags "$image"
  }
  echo "$image"
}

without() { printf -- '--exclude=./%s ' "$@"; }

# debootstrap mounts /proc and /sys, which a broken-off one leaves: never reach through them.
remove_rootfs() {
  [ -e "$1" ] || return 0
  as_root umount -l "$1/proc" "$1/sys" 2>/dev/null || true
  as_root rm -rf --one-file-system "$1"
}

# Removes what earlier versions of an image left in the engine.
remove_other_tags() {
  local tag
  for tag in $(docker image ls --format '{{.Repository}}:{{.Tag}}' "${1%:*}"); do
    [ "$tag" = "$1" ] || docker rmi "$tag" >/dev/null 2>&1 || true # one in use stays
  done
}
