#!/usr/bin/env bash
# Half the nodes cut off by network namespaces for a while and joined again: no repair storm on
# either side, nothing lost. Sixteen node processes, each in a network namespace of its own, behind
# two bridges that one cable joins; the cable is pulled. Then unevenly, eleven against five and ten
# against six, and then in one direction only. A longer check, four minutes: not part of `make test`.
#
# Needs root, Linux and iproute2, and the built programs (make build). What it makes, it removes again,
# also when it fails or is interrupted; the machine's own network is not touched.
#
#   COPSE_BIN=DIR   where copse and copse-node are, if not in the target directory
#   SIZE_MIB=64     size of the generated file
#   CUT=20          how long a cut lasts after all have noticed it, in seconds; a node is dead after 16
#
# Exit codes: 0 all passed, 1 something did not hold, 77 it cannot be run here (the message says why)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/network.sh
. deploy/network.sh

nodes=16
size_mib=${SIZE_MIB:-64}
cut=${CUT:-20}
case $size_mib$cut in *[!0-9]*) die "SIZE_MIB and CUT are numbers" ;; esac
[ "$cut" -gt 16 ] || die "a cut must be longer than 16 s, after which a node may be given up"

cannot() {
    printf 'partition: CANNOT BE RUN HERE, %s\n' "$*" >&2
    exit 77
}
[ "$(uname -s)" = Linux ] || cannot "network namespaces are of Linux"
[ "$(id -u)" -eq 0 ] || cannot "making network namespaces needs root (sudo, or a container with CAP_SYS_ADMIN and CAP_NET_ADMIN)"
# Under sudo there may be no cargo; told where the programs are, nobody has to ask it.
: "${CARGO_TARGET_DIR:=${COPSE_BIN:-}}"
[ -n "$CARGO_TARGET_DIR" ] || command -v "${CARGO:-cargo}" >/dev/null 2>&1 ||
    cannot "there is no cargo to ask where the programs are; set COPSE_BIN"
command -v ip >/dev/null 2>&1 || cannot "the program ip is missing (apt-get install iproute2)"

chapter=0
chapter() {
    chapter=$((chapter + 1))
    printf '\n%d. %s\n' "$chapter" "$*"
}
line() { printf '   %s\n' "$*"; }

# ---- the network: a namespace for each node and the client, and one with the two bridges.

prefix=copse-$$
spaces=() # names of namespaces
space() { printf '%s-%s' "$prefix" "$1"; }
finish() {
    local code=$? name
    set +e
    trap '' INT TERM HUP
    if [ "$code" -eq 1 ]; then told; fi
    # A namespace goes, and with it its interfaces, when the last process in it has ended.
    for name in ${spaces[@]+"${spaces[@]}"}; do ip netns del "$name" 2>/dev/null; done
    (exit "$code")
    cleanup
}

make_space() {
    local name
    name=$(space "$1")
    ip netns add "$name" 2>"$work/error" || cannot "no network namespace can be made: $(cat "$work/error")"
    spaces+=("$name")
    ip -n "$name" link set lo up
}
# A namespace with an address, behind a bridge.
plug() { # name address bridge
    make_space "$1"
    ip -n "$switch" link add "$1" type veth peer name eth0 netns "$(space "$1")" 2>"$work/error" ||
        cannot "no veth pair can be made: $(cat "$work/error")"
    ip -n "$switch" link set "$1" master "$3" up
    ip -n "$(space "$1")" address add "$2/24" dev eth0
    ip -n "$(space "$1")" link set eth0 up
}
address() { printf '10.77.0.%d' "$1"; }

make_network() {
    local bridge i
    switch=$(space switch)
    make_space switch
    for bridge in left right; do
        ip -n "$switch" link add "$bridge" type bridge 2>"$work/error" || cannot "no bridge can be made: $(cat "$work/error")"
        ip -n "$switch" link set "$bridge" up
    done
    # The cable.
    ip -n "$switch" link add cable-left type veth peer name cable-right
    ip -n "$switch" link set cable-left master left up
    ip -n "$switch" link set cable-right master right up
    for ((i = 1; i <= nodes; i++)); do
        if [ "$i" -le 8 ]; then plug "node$i" "$(address "$i")" left; else plug "node$i" "$(address "$i")" right; fi
    done
    plug client "$(address 100)" left
}

pull_cable() { ip -n "$switch" link set cable-left down; }
join_cable() { ip -n "$switch" link set cable-left up; }
# What the left bridge would send over the cable is dropped without a word; the other way stays open.
leftward_only() {
    ip -n "$switch" link set dev cable-left type bridge_slave learning off flood off mcast_flood off bcast_flood off
    ip -n "$switch" link set dev cable-left type bridge_slave fdb_flush
}
both_ways() {
    ip -n "$switch" link set dev cable-left type bridge_slave learning on flood on mcast_flood on bcast_flood on
}
move() { # bridge node...
    local bridge=$1 i
    shift
    for i in "$@"; do ip -n "$switch" link set "node$i" master "$bridge"; done
}

# ---- programs in it; these take the places of those in network.sh.

inside() { # node command...
    local name
    name=$(space "node$1")
    shift
    ip netns exec "$name" "$@"
}
run_node() { # number
    local dir
    dir=$(node_dir "$1")
    # `ip netns exec` becomes the node: the process id is the node's.
    ip netns exec "$(space "node$1")" "$bin/copse-node" run --dir "$dir" >>"$dir/log" 2>&1 </dev/null &
    node_pids[$1]=$!
}
client() {
    local code=0 slot=${#other_pids[@]}
    COPSE_HOME="$work/home" ip netns exec "$(space client)" "$bin/copse" "$@" >"$work/out" 2>"$work/error" </dev/null &
    other_pids[slot]=$!
    wait "${other_pids[slot]}" || code=$?
    other_pids[slot]=
    return "$code"
}
# Sleeps so that a signal ends it at once.
rest() {
    local slot=${#other_pids[@]}
    sleep "$1" &
    other_pids[slot]=$!
    wait "${other_pids[slot]}"
    other_pids[slot]=
}
client_or_die() { client "$@" || die "copse $1 failed: $(tail -n 3 "$work/error")"; }

# Hours become seconds. Nodes that fell silent within a minute did so together. A node that is down is
# pinged 12 times less often, and guards settle for down_after: that must be the longer one, as it is by default.
quicken() { # configuration
    local from to
    while read -r from to; do
        grep -q "^${from%%=*} = \"${from##*=}\"" "$1" || die "the configuration has no ${from/=/ = }"
        sed -i "s/^${from%%=*} = .*/${from%%=*} = \"$to\"/" "$1"
    done <<'SETTINGS'
ping_every=5s 300ms
suspect_after=10s 2s
down_after=5min 8s
dead_after=4h 16s
together=1h 1min
freeze_max=1d 10min
round_every=1min 1s
patience=1d 20s
SETTINGS
}
start_partition() {
    local i join_args token
    for ((i = 1; i <= nodes; i++)); do
        join_args=()
        [ "$i" -eq 1 ] || join_args=(--join "$token")
        inside "$i" "$bin/copse-node" init --dir "$(node_dir "$i")" --listen "$(address "$i"):7400" \
            --grpc "$(address "$i"):7401" --capacity 4GiB ${join_args[@]+"${join_args[@]}"} >"$work/out" || die "init of node $i failed"
        [ "$i" -ne 1 ] || token=$("$bin/copse-node" token --dir "$(node_dir 1)")
        quicken "$(node_dir "$i")/copse-node.toml"
        run_node "$i"
    done
    client_join() { client join "$token"; }
    wait_until 60 "the client can join" client_join
}

# ---- what the nodes say.

# One line for each node that answers, into $work/survey:
#   1 node, 2 guard (free, frozen, cut-off), 3 planned, 4 chunks, 5 whole, 6 displaced, 7 queued or running, 8 shards,
#   9 rebuilt bytes, 10 moved bytes, 11 peers alive, 12 down, 13 dead, 14 rebuilt shards
survey() {
    local i
    for ((i = 1; i <= nodes; i++)); do
        kill -0 "${node_pids[$i]}" 2>/dev/null || die "node $i ended: $(tail -n 3 "$(node_dir "$i")/log")"
        inside "$i" "$bin/copse-node" status --json --dir "$(node_dir "$i")" 2>/dev/null >"$work/status/$i" || true
    done
    for ((i = 1; i <= nodes; i++)); do
        tr -d '\n ' <"$work/status/$i" | awk -v node="$i" '
            function number(name) {
                if (!match($0, "\"" name "\":[0-9]+")) return 0
                return substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0
            }
            function sum(name,   parts, count, at, total) {
                if (!match($0, "\"" name "\":[{][^}]*[}]")) return 0
                count = split(substr($0, RSTART, RLENGTH), parts, /":/)
                for (at = 3; at <= count; at++) total += parts[at]
                return total + 0
            }
            function times(text,   rest) { rest = $0; return gsub("\"standing\":\"" text "\"", "", rest) }
            {
                guard = /"cut_off":true/ ? "cut-off" : /"guard":"/ ? "frozen" : "free"
                print node, guard, /"planned":true/ ? 1 : 0, sum("chunks_by_margin"), number("chunks_whole"),
                    number("chunks_displaced"), sum("queue_by_margin") + number("running"), number("shards"),
                    number("rebuilt_bytes"), number("moved_bytes"),
                    times("alive"), times("down"), times("dead"), number("rebuilt_shards")
            }'
    done >"$work/survey"
}
# The sum of a column of a survey over some nodes: survey column [first last]
total() {
    awk -v column="$2" -v first="${3:-1}" -v last="${4:-$nodes}" \
        '$1 >= first && $1 <= last { sum += $column } END { print sum + 0 }' "$1"
}
# How many nodes are like this: survey 'awk condition' [first last]
how_many() {
    awk -v first="${3:-1}" -v last="${4:-$nodes}" \
        "\$1 >= first && \$1 <= last && ($2) { count++ } END { print count + 0 }" "$1"
}
told() { # when something did not hold
    [ -s "$work/survey" ] || return 0
    printf -- '--- what the nodes said last: guard, planned, chunks, whole, displaced, queued, shards,\n' >&2
    printf -- '--- rebuilt and moved bytes, peers alive, down, dead, rebuilt shards\n' >&2
    cat "$work/survey" >&2
}
mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'; }

chunks='' shards='' # once all is stored
# All nodes see all others, nobody holds back, every chunk is whole and in its place, nothing is under way.
settled() {
    survey
    local fine="\$2 == \"free\" && \$3 == 1 && \$6 == 0 && \$7 == 0 && \$11 == $((nodes - 1))"
    [ "$(how_many "$work/survey" "$fine")" -eq "$nodes" ] || return 1
    [ "$(total "$work/survey" 4)" -eq "$(total "$work/survey" 5)" ] || return 1
    [ -z "$chunks" ] || { [ "$(total "$work/survey" 4)" -eq "$chunks" ] && [ "$(total "$work/survey" 8)" -eq "$shards" ]; }
}
# The same figures twice, with rounds of all nodes between.
stable() {
    settled && [ "$(total "$work/survey" 4)" -gt 0 ] || return 1
    cp "$work/survey" "$work/earlier"
    rest 3
    settled && cmp -s "$work/survey" "$work/earlier"
}
# By the last survey these nodes miss so many others, and hold back as they should: first last guard how_many
hold_back() {
    [ "$(how_many "$work/survey" "\$2 == \"$3\" && \$12 == $4" "$1" "$2")" -eq $(($2 - $1 + 1)) ] || return 1
    [ "$3" != cut-off ] || return 0
    # Those that may plan have planned anew: no chunk has all its shards on one side.
    [ "$(total "$work/survey" 4 "$1" "$2")" -gt 0 ] && [ "$(total "$work/survey" 5 "$1" "$2")" -eq 0 ]
}
both_hold_back() { # how many nodes are left, guard on the left, guard on the right
    survey
    hold_back 1 "$1" "$2" $((nodes - $1)) && hold_back $(($1 + 1)) "$nodes" "$3" "$1"
}

# What was done since before the cut, on both sides. On the left so many shards may have been made, nothing else.
little_was_done() { # how many nodes are left, how many shards
    local side first last made rebuilt moved
    for side in left right; do
        first=1 last=$1
        [ "$side" = left ] || first=$(($1 + 1)) last=$nodes
        made=$(grown 14 "$first" "$last") rebuilt=$(grown 9 "$first" "$last") moved=$(grown 10 "$first" "$last")
        line "  $side: rebuilt $(mib "$rebuilt") ($made shards), moved $(mib "$moved")"
        [ "$moved" -eq 0 ] || die "shards were moved on the $side side"
        if [ "$side" = left ]; then [ "$made" -le "$2" ]; else [ "$made" -eq 0 ]; fi ||
            die "too much was rebuilt on the $side side"
    done
    [ "$(total "$work/survey" 13)" -eq 0 ] || die "somebody is taken for dead"
    ! grep -l 'silent for [0-9]* s: signed' "$work"/nodes/*/log || die "a node signed that another is dead"
}
grown() { echo $(($(total "$work/survey" "$@") - $(total "$work/before" "$@"))); } # column first last
everything_reads() {
    rm -rf "$work/back"
    client_or_die get "$capability" "$work/back"
    diff -r "$folder" "$work/back" >&2 || die "other bytes came back"
    line "every byte is read"
}
# Until all have noticed, then for as long as a cut lasts, then what was done meanwhile.
endure() { # how many nodes are left, guard on the left, guard on the right, shards that may be made
    local started
    started=$(now)
    wait_until 90 "all nodes notice: $2 on the left, $3 on the right" both_hold_back "$1" "$2" "$3"
    line "after $(since "$started") s the $1 on the left are $2, the $((nodes - $1)) on the right $3:"
    line "  left:  $(reason 1)"
    line "  right: $(reason "$nodes")"
    rest "$cut"
    wait_until 10 "they still hold back" both_hold_back "$1" "$2" "$3"
    line "$cut s later they still are (one node alone would be given up after 16 s):"
    little_was_done "$1" "$4"
}
heal() { # how many were left, shards that may be made
    local started
    started=$(now)
    wait_until 120 "all is whole again" settled
    line "joined; $(since "$started") s later all nodes see all others, and every chunk is whole and in its place."
    line "Since before the cut:"
    little_was_done "$1" "$2"
    everything_reads
    cp "$work/survey" "$work/before"
}
reason() { grep -o '"guard": *"[^"]*"' "$work/status/$1" | cut -d '"' -f 4; }

begin $((1024 + size_mib * 8))
trap finish EXIT
mkdir "$work/status"
: >"$work/survey"

echo "Partition: $nodes nodes in network namespaces, cut in two and joined again"
chapter "A network"
make_network
start_partition
wait_until 60 "all nodes see each other" settled
line "8 nodes behind the left bridge, 8 behind the right, the client on the left; each sees all others"
folder=$work/folder
mkdir -p "$folder/small"
head -c $((size_mib * 1048576)) /dev/urandom >"$folder/random.bin"
for ((i = 1; i <= 200; i++)); do head -c $((i * 100)) /dev/urandom >"$folder/small/$i"; done
client_or_die put "$folder" --geometry 10+6
capability=$(grep -o -E 'copse1r[a-z0-9]+' "$work/out" | head -n 1)
[ -n "$capability" ] || die "copse put printed no capability"
wait_until 120 "everything is stored and settled" stable
chunks=$(total "$work/survey" 4)
shards=$(total "$work/survey" 8)
line "put: $size_mib MiB and 200 small files, 10+6; $chunks chunks, $shards shards, all in their places"
cp "$work/survey" "$work/before"

chapter "Half against half"
pull_cable
endure 8 frozen frozen 0
join_cable
heal 8 0

chapter "Eleven against five"
pull_cable
move left 9 10 11
endure 11 frozen cut-off 0
everything_reads
join_cable
heal 11 0

chapter "Ten against six: on the left no chunk has a shard to spare"
pull_cable
move right 11
endure 10 frozen cut-off "$chunks"
everything_reads
join_cable
heal 10 "$chunks"

chapter "Half against half, in one direction: the left is heard by nobody on the right"
move right 9 10
leftward_only
endure 8 frozen frozen 0
both_ways
heal 8 0

echo
echo "partition: all passed in $SECONDS s"
