#!/usr/bin/env bash
# Runs deploy/compose.yaml for real: builds the image from the programs built here, starts the eight
# nodes, puts a folder and gets it back, stops two nodes, gets it again, and takes everything down.
#
# No registry is needed: without BASE the image of this machine's own Debian or Ubuntu release (so that glibc
# fits the programs) is taken when the engine has it, else one is made with debootstrap. Where something is
# missing it says what and skips.
#
#   --offline                   make no base image: debootstrap needs the network and minutes
#   BASE=debian:bookworm-slim   an image to build on
#   ENGINE=docker|podman
#
# Exit codes: 0 passed, 1 something did not work, 77 it cannot be run here (the message says why)
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'containers: %s\n' "$*"; }
skip() {
    say "SKIPPED, $*"
    exit 77
}
die() {
    say "$*" >&2
    exit 1
}

offline=
case ${1:-} in
--offline) offline=yes ;;
?*) die "unknown argument: $1" ;;
esac

engine=${ENGINE:-}
if [ -z "$engine" ]; then
    for engine in docker podman none; do command -v "$engine" >/dev/null 2>&1 && break; done
fi
[ "$engine" != none ] || skip "neither docker nor podman is here"
timeout 20 "$engine" info >/dev/null 2>&1 || skip "$engine is here, but its engine does not answer"
if "$engine" compose version >/dev/null 2>&1; then
    compose=("$engine" compose)
elif command -v "$engine-compose" >/dev/null 2>&1; then
    compose=("$engine-compose")
else
    skip "$engine has no compose"
fi

target=${CARGO_TARGET_DIR:-$("${CARGO:-cargo}" metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')}
bin=${COPSE_BIN:-$target/release}
[ -x "$bin/copse-node" ] && [ -x "$bin/copse" ] || die "copse-node and copse are not in $bin; run make build"

work=$(mktemp -d "${TMPDIR:-/tmp}/copse-containers.XXXXXX")
project=copse-check-$$
export COPSE_IMAGE=$project
own_base=
compose() { "${compose[@]}" --project-name "$project" --file deploy/compose.yaml "$@"; }
cleanup() {
    local code=$?
    set +e
    trap '' INT TERM HUP
    if [ "$code" -ne 0 ] && [ "$code" -lt 77 ]; then compose logs --tail 5 2>/dev/null || true; fi
    compose down --volumes --timeout 10 >/dev/null 2>&1
    "$engine" rmi -f "$COPSE_IMAGE" >/dev/null 2>&1
    [ -z "$own_base" ] || "$engine" rmi -f "$own_base" >/dev/null 2>&1
    rm -rf "$work"
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ -z "${BASE:-}" ]; then
    # shellcheck disable=SC1091
    . /etc/os-release
    case ${ID:-} in debian | ubuntu) ;; *) skip "no BASE given, and debootstrap makes only Debian and Ubuntu" ;; esac
    for image in "$ID:$VERSION_CODENAME-slim" "$ID:$VERSION_CODENAME" "$ID:${VERSION_ID:-}"; do
        if "$engine" image inspect "$image" >/dev/null 2>&1; then BASE=$image && break; fi
    done
fi
if [ -z "${BASE:-}" ]; then
    [ -z "$offline" ] || skip "no BASE given, and $engine has no image of $ID $VERSION_CODENAME"
    [ "$(id -u)" -eq 0 ] || skip "no BASE given, and debootstrap needs root"
    command -v debootstrap >/dev/null 2>&1 || skip "no BASE given, and debootstrap is not installed (apt-get install debootstrap)"
    say "making a base of $ID $VERSION_CODENAME with debootstrap"
    debootstrap --variant=minbase "$VERSION_CODENAME" "$work/base" >"$work/debootstrap.log" 2>&1 || {
        tail -n 5 "$work/debootstrap.log"
        skip "debootstrap did not work (no network?)"
    }
    own_base=$project-base
    tar -C "$work/base" -c . | "$engine" import - "$own_base" >/dev/null
    rm -rf "$work/base"
    BASE=$own_base
fi

say "building the image"
mkdir "$work/context"
cp "$bin/copse-node" "$bin/copse" "$work/context/"
strip --strip-debug "$work/context/copse-node" "$work/context/copse" 2>/dev/null || true
cp deploy/copse-entrypoint.sh "$work/context/copse-entrypoint"
"$engine" build -q -f deploy/Dockerfile --target prebuilt --build-arg "RUNTIME_BASE=$BASE" -t "$COPSE_IMAGE" "$work/context" >"$work/build.log" 2>&1 || {
    cat "$work/build.log"
    die "the image could not be built"
}

say "starting eight nodes"
compose up -d --no-build >"$work/up.log" 2>&1 || {
    cat "$work/up.log"
    die "compose up failed"
}
# One client container for all that follows, its own volume for what it remembers.
answering() { # how many nodes answer the client
    compose run --rm -T client sh -c 'copse nodes --json' 2>/dev/null </dev/null | { grep -o '"reachable":true' || true; } | wc -l
}
all_answer() { # within 30 tries
    local tries=0
    until [ "$(answering)" -ge 8 ]; do
        [ "$tries" -lt 30 ] || die "only $(answering) of eight nodes answer the client"
        tries=$((tries + 1))
        sleep 1
    done
}
waited=0
until compose run --rm -T client sh -c 'copse join "$(cat /run/copse/token)"' >"$work/join.log" 2>&1 </dev/null; do
    [ "$waited" -lt 30 ] || die "the client could not join: $(tail -n 3 "$work/join.log")"
    waited=$((waited + 1))
    sleep 1
done
all_answer

say "putting a folder and getting it back"
# shellcheck disable=SC2016 # for the shell in the container
compose run --rm -T client sh -euc '
    cd /var/lib/copse
    mkdir folder && head -c 50000000 /dev/urandom >folder/large && echo small >folder/small
    copse put folder >capability
    copse get "$(grep -o "copse1r[a-z0-9]*" capability)" back
    cmp folder/large back/large && cmp folder/small back/small
' </dev/null || die "put and get failed"
say "stopping two nodes and getting it again"
compose stop -t 10 node3 node6 >/dev/null 2>&1
# shellcheck disable=SC2016
compose run --rm -T client sh -euc '
    cd /var/lib/copse
    copse get "$(grep -o "copse1r[a-z0-9]*" capability)" again
    cmp folder/large again/large && cmp folder/small again/small
' </dev/null || die "get with two nodes stopped failed"
say "restarting them: they keep their identity and their shards"
compose start node3 node6 >/dev/null 2>&1
all_answer
say "passed: eight nodes as non-root, read-only containers"
