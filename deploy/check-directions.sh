#!/usr/bin/env bash
# Proves the directions that ARCHITECTURE.md promises: which crate may know which, and what the
# core may not do. Reads cargo's own dependency trees; builds nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}"

failures=0
fail() {
    printf 'direction: %s\n' "$*" >&2
    failures=$((failures + 1))
}

# The crates that end up in $1, on every platform, build scripts included, tests not.
# One name a line, with the version behind it.
crates() {
    local package=$1
    shift
    "$CARGO" tree --quiet --package "$package" --edges normal,build --target all --prefix none \
        --format '{p}' "$@" | awk '{ print $1, $2 }' | sort -u
}

# $1 may not contain any of the others.
absent() {
    local package=$1 tree forbidden version
    shift
    tree=$(crates "$package" "${options[@]}")
    for forbidden in "$@"; do
        if grep -q "^$forbidden " <<<"$tree"; then
            fail "$package must not depend on $forbidden:"
            version=$(awk -v name="$forbidden" '$1 == name { print substr($2, 2); exit }' <<<"$tree")
            "$CARGO" tree --quiet --package "$package" --edges normal,build --target all \
                "${options[@]}" --invert "$forbidden@$version" 2>/dev/null | head -n 15 >&2 || true
        fi
    done
}

options=()
absent copse-core tokio mio socket2 quinn tonic hyper prost rustls rocksdb librocksdb-sys rand rand_core \
    copse-proto copse-node copse-client
absent copse-proto copse-node copse-client rocksdb librocksdb-sys quinn
absent copse-node copse-client
absent copse-client copse-node rocksdb librocksdb-sys quinn
options=(--no-default-features)
absent copse-node rocksdb librocksdb-sys
options=()

# copse-proto knows core alone of this workspace.
own=$(crates copse-proto | awk '/^copse-/ { print $1 }' | grep -v -x copse-proto | tr '\n' ' ')
[ "$own" = "copse-core " ] || fail "copse-proto must know copse-core alone, knows: $own"

# The simulator runs the node without RocksDB, so that it builds in seconds.
if [ -f sim/Cargo.toml ]; then
    absent copse-sim rocksdb librocksdb-sys
fi

# A node that is built for release, by itself, has none of the simulator's bugs on purpose.
features=$("$CARGO" tree --quiet --package copse-node --package copse-client --depth 0 --prefix none \
    --format '{p} {f}' | awk '$1 == "copse-node" { print $NF }')
case ",$features," in
*,canary,*) fail "copse-node has the feature canary without being asked: $features" ;;
*,rocksdb,*) ;;
*) fail "copse-node's features cannot be read: $features" ;;
esac
grep -A 1 'cargo build' deploy/Dockerfile | grep -q -- '--package copse-node --package copse-client --bins' ||
    fail "deploy/Dockerfile must build the programs by themselves, without the simulator's canary"

# getrandom is in the core's tree once, for the hash seed of a cache inside reed-solomon-erasure
# (lru -> hashbrown -> ahash); nothing that is computed depends on it. Any other way in is an error.
expected='getrandom ahash hashbrown lru reed-solomon-erasure copse-core'
versions=$(crates copse-core | awk '$1 == "getrandom" { print substr($2, 2) }')
if [ "$(wc -w <<<"$versions")" -gt 1 ]; then
    fail "copse-core has more than one getrandom: $versions"
elif [ -n "$versions" ]; then
    found=$("$CARGO" tree --quiet --package copse-core --edges normal,build --target all --prefix none \
        --format '{p}' --invert "getrandom@$versions" | awk '{ print $1 }' | paste -s -d ' ')
    [ "$found" = "$expected" ] || fail "copse-core reaches getrandom by another way than '$expected': $found"
fi

# What the core's own sources may not say (comments may).
forbidden='std::(fs|net|process|env)\b|std::time::(Instant|SystemTime)|\b(Instant|SystemTime)::now|\bSystemTime\b|std::io::(stdin|stdout|stderr)\b|\b(getrandom|thread_rng|OsRng)\b|\btokio::'
if hits=$(grep -r -n -E "$forbidden" core/src --include='*.rs' | grep -v -E '^[^:]+:[0-9]+:[[:space:]]*//'); then
    fail "core/src must not touch files, sockets, the clock, the environment or randomness:"
    printf '%s\n' "$hits" >&2
fi

if [ "$failures" -gt 0 ]; then
    echo "directions: $failures broken" >&2
    exit 1
fi
echo "directions: all hold"
