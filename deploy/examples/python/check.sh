#!/usr/bin/env bash
# Runs the Python example against real processes: nodes, `copse serve`, and a client that knows
# nothing but files.proto. Compares what it reads and puts, byte for byte.
#
# Exit codes: 0 passed, 1 something did not work, 77 it cannot be run here (the message says why)
set -euo pipefail
cd "$(dirname "$0")/../../.."
# shellcheck source=deploy/network.sh
. deploy/network.sh

skip() {
    echo "python example: SKIPPED, $*"
    exit 77
}
command -v python3 >/dev/null 2>&1 || skip "there is no python3"

# The generated code's tools, kept between runs; made apart and moved, so that a broken
# download leaves nothing half done behind.
wanted=$(python3 -c 'import sys, platform; print(*sys.version_info[:2], platform.machine(), sep="-")')-$(cksum <deploy/examples/python/requirements.txt | cut -d ' ' -f 1)
venv=${XDG_CACHE_HOME:-$HOME/.cache}/copse/python-$wanted
if ! "$venv/bin/python" -c 'import grpc, grpc_tools' 2>/dev/null; then
    rm -rf "$venv"
    mkdir -p "${venv%/*}"
    python3 -m venv "$venv" || skip "python3 has no venv module (on Debian: apt-get install python3-venv)"
    "$venv/bin/pip" install -q --disable-pip-version-check -r deploy/examples/python/requirements.txt || {
        rm -rf "$venv"
        skip "pip could not install grpcio and grpcio-tools"
    }
fi

begin 2048
export PYTHONPATH=$work/generated PYTHONDONTWRITEBYTECODE=1
mkdir "$PYTHONPATH"
"$venv/bin/python" -m grpc_tools.protoc -I proto --python_out="$PYTHONPATH" \
    --grpc_python_out="$PYTHONPATH" copse/files/v1/files.proto
cp deploy/examples/python/copse_files.py "$work/"

start_nodes 4
client join "$network_token"

folder=$work/folder
mkdir -p "$folder/deep/er"
head -c 20000000 /dev/urandom >"$folder/large"
printf 'small' >"$folder/deep/er/small"
: >"$folder/empty"
ln -s large "$folder/link"
client put "$folder"
capability=$(grep -o -E 'copse1r[a-z0-9]+' "$work/out" | head -n 1)

address=unix:$work/socket
env HOME="$work/home" XDG_CONFIG_HOME="$work/home/config" XDG_STATE_HOME="$work/home/state" \
    XDG_CACHE_HOME="$work/home/cache" XDG_DATA_HOME="$work/home/data" \
    "$bin/copse" serve "$capability" --grpc "$address" >"$work/serve.log" 2>&1 </dev/null &
other_pids+=($!)
# The socket belongs to its owner alone: what passes there is plaintext.
wait_until 180 "copse serve listens" test -S "$work/socket"

files() { "$venv/bin/python" "$work/copse_files.py" "$address" "$@"; }
same() { # what expected got
    cmp "$2" "$3" || die "$1: not the same bytes"
    echo "python example: $1: same bytes"
}

files stat large
files ls --recursive | tee "$work/list"
[ "$(wc -l <"$work/list")" -eq 6 ] || die "expected 6 entries"
files ls --recursive --prefix deep/er >"$work/list"
[ "$(wc -l <"$work/list")" -eq 2 ] || die "expected 2 entries below the prefix"

files read large >"$work/got"
same "the whole file" "$folder/large" "$work/got"
for range in "0 1" "65535 2" "8388600 100" "12345678 4000000" "19999999 1"; do
    read -r offset length <<<"$range"
    tail -c +$((offset + 1)) "$folder/large" | head -c "$length" >"$work/expected" || true
    files read large --offset "$offset" --length "$length" >"$work/got"
    same "$length bytes at $offset" "$work/expected" "$work/got"
done
files read deep/er/small >"$work/got"
same "a small file" "$folder/deep/er/small" "$work/got"
files read empty >"$work/got"
same "an empty file" "$folder/empty" "$work/got"

# Errors have gRPC's codes; the example exits with code + 1.
refused() { # code what command...
    local expected=$1 what=$2 code=0
    shift 2
    files "$@" >"$work/got" 2>"$work/error" || code=$?
    [ "$code" -eq $((expected + 1)) ] || die "$what: expected gRPC code $expected, got exit $code: $(cat "$work/error")"
    echo "python example: $what: $(cat "$work/error")"
}
refused 5 "a path that is not there" stat no/such/file
refused 11 "an offset behind the end" read large --offset 30000000

files put "$folder/large" >"$work/put"
client cat "$(cat "$work/put")"
same "a file that Python put" "$folder/large" "$work/out"
files put "$folder/large" "$folder/deep/er/small" >"$work/put"
client cat "$(cat "$work/put")/small"
same "a file of a tree that Python put" "$folder/deep/er/small" "$work/out"
echo "python example: passed"
