#!/usr/bin/env bash
# A throw-away network of node processes on this machine, for the demo, the checks and the benches.
# To be sourced. What it starts it knows by process id, and ends when the sourcing script ends, in whatever way.
#
#   begin                 finds the programs, makes $work (removed at the end)
#   start_nodes 8         node 1 founds, the others join; returns when each sees all others
#   client put FOLDER     runs copse with a home of its own; stdout to $work/out
#   wait_until 30 'all up' some_command

# Names that the sourcing script uses:
work=           # directory for everything
bin=            # directory of the programs
node_pids=()    # by node number, from 1; empty when it was killed
other_pids=()   # whatever else must end with us

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Seconds with a fraction, for rates.
now() { printf '%s\n' "${EPOCHREALTIME:-$(date +%s)}" | tr , .; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.3f", to - from }'; }

free_mib() { df -Pk "$1" | awk 'NR == 2 { printf "%d", $4 / 1024 }'; }

begin() { # MiB of disk that will be needed
    local target need=${1:-0} place
    target=${CARGO_TARGET_DIR:-}
    if [ -z "$target" ]; then
        target=$("${CARGO:-cargo}" metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
    fi
    bin=${COPSE_BIN:-$target/release}
    [ -x "$bin/copse-node" ] && [ -x "$bin/copse" ] || die "copse-node and copse are not in $bin; run make build"
    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    place=${TMPDIR:-/tmp}
    if [ "$(free_mib "$place")" -lt "$need" ]; then
        [ "$(free_mib "$target")" -ge "$need" ] || die "needs $need MiB of free disk; $place and $target have less. Set TMPDIR."
        place=$target
    fi
    work=$(mktemp -d "$place/copse-$(basename "$0" .sh).XXXXXX")
    mkdir "$work/home" "$work/nodes"
}

cleanup() {
    local code=$? pid waited=0
    set +e # every step of the clean-up is tried
    trap '' INT TERM HUP
    for pid in ${other_pids[@]+"${other_pids[@]}"} ${node_pids[@]+"${node_pids[@]}"}; do [ -z "$pid" ] || kill "$pid" 2>/dev/null; done
    for pid in ${other_pids[@]+"${other_pids[@]}"} ${node_pids[@]+"${node_pids[@]}"}; do
        [ -n "$pid" ] || continue
        while kill -0 "$pid" 2>/dev/null; do
            # Nodes end in well under a second; one that hangs for ten is ended for it.
            if [ "$waited" -ge 100 ]; then kill -9 "$pid" 2>/dev/null; fi
            sleep 0.1
            waited=$((waited + 1))
        done
        wait "$pid" 2>/dev/null
    done
    if [ "$code" -ne 0 ] && [ "$code" -lt 128 ] && [ -n "$work" ]; then
        for log in "$work"/nodes/*/log; do
            [ -s "$log" ] || continue
            printf -- '--- the last lines of %s\n' "${log#"$work/"}" >&2
            tail -n 5 "$log" >&2
        done
    fi
    [ -z "$work" ] || { chmod -R u+rwX "$work" 2>/dev/null; rm -rf "$work"; }
    exit "$code"
}

# A condition, tried ten times a second until it holds or the bound (seconds) is over.
wait_until() { # seconds what command...
    local bound=$1 what=$2 deadline=$((SECONDS + $1))
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || die "waited $bound s in vain for: $what"
        sleep 0.1
    done
}

node_dir() { printf '%s' "$work/nodes/$1"; }

run_node() { # number
    local dir
    dir=$(node_dir "$1")
    "$bin/copse-node" run --dir "$dir" >>"$dir/log" 2>&1 </dev/null &
    node_pids[$1]=$!
}

# How many other nodes this one knows. It need not be connected to each: it connects when it has to.
peers_of() { # number
    "$bin/copse-node" status --dir "$(node_dir "$1")" --json 2>/dev/null | grep -o '"connected":' | wc -l
}
sees() { # number how_many
    # A node that died will never see anybody: say so at once.
    kill -0 "${node_pids[$1]}" 2>/dev/null || die "node $1 ended: $(tail -n 3 "$(node_dir "$1")/log")"
    [ "$(peers_of "$1")" -ge "$2" ]
}

start_nodes() { # how many
    local count=$1 i token
    for ((i = 1; i <= count; i++)); do
        local join=()
        [ "$i" -eq 1 ] || join=(--join "$token")
        "$bin/copse-node" init --dir "$(node_dir "$i")" --listen 127.0.0.1:0 --grpc 127.0.0.1:0 \
            --capacity "${NODE_CAPACITY:-10GiB}" ${join[@]+"${join[@]}"} >"$work/out" || die "init of node $i failed"
        [ "$i" -ne 1 ] || token=$("$bin/copse-node" token --dir "$(node_dir 1)")
        run_node "$i"
    done
    for ((i = 1; i <= count; i++)); do
        wait_until 180 "node $i sees the $((count - 1)) others" sees "$i" $((count - 1))
    done
    # shellcheck disable=SC2034 # for the sourcing script
    network_token=$token
}

# Dies as a process dies whose machine loses power, as far as the others can see.
kill_node() { # number
    { kill -9 "${node_pids[$1]}" && wait "${node_pids[$1]}"; } 2>/dev/null || true
    node_pids[$1]=
}

# Runs the client in the background and waits, so that a signal ends it and us at once.
client() {
    local code=0 slot=${#other_pids[@]}
    env HOME="$work/home" XDG_CONFIG_HOME="$work/home/config" XDG_STATE_HOME="$work/home/state" \
        XDG_CACHE_HOME="$work/home/cache" XDG_DATA_HOME="$work/home/data" \
        "$bin/copse" "$@" >"$work/out" </dev/null &
    other_pids[slot]=$!
    wait "${other_pids[slot]}" || code=$?
    other_pids[slot]=
    return "$code"
}
