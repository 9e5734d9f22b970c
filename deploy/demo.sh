#!/usr/bin/env bash
# The main job on real processes: eight nodes, a real folder, two nodes die, a third one's disk
# rots, and the folder comes back whole. Needs the built programs (make demo builds them).
#
#   NODES=8       node processes, at least 8: the default code then survives four losses
#   SIZE_MIB=256  size of the generated file
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/network.sh
. deploy/network.sh

nodes=${NODES:-8}
size_mib=${SIZE_MIB:-256}
case $nodes$size_mib in *[!0-9]*) die "NODES and SIZE_MIB are numbers" ;; esac
[ "$nodes" -ge 8 ] || die "with fewer than 8 nodes the default code does not survive that"

bold='' dim='' green='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' plain=$'\e[0m'
fi
chapter=0
chapter() {
    chapter=$((chapter + 1))
    printf '\n%s%d. %s%s\n' "$bold" "$chapter" "$*" "$plain"
}
line() { printf '   %s\n' "$*"; }
good() { printf '   %s✓%s %s\n' "$green" "$plain" "$*"; }
rate() { # bytes seconds
    awk -v b="$1" -v s="$2" 'BEGIN { printf "%.0f MB in %.1f s, %.0f MB/s", b / 1e6, s, b / 1e6 / (s > 0 ? s : 1e-3) }'
}

# Type, permissions, time of last change (nanoseconds) and name of everything below a directory;
# the content is compared apart.
if stat -c %y / >/dev/null 2>&1; then
    describe() { stat -c '%F %a %y %n' "$@"; }
else
    describe() { stat -f '%HT %Lp %Fm %N' "$@"; }
fi
manifest() {
    (cd "$1" && export LC_ALL=C && find . -print0 | sort -z | while IFS= read -r -d '' path; do
        # An empty regular file and one with content are the same type.
        describe "$path" | sed 's/^regular empty file /regular file /'
        [ ! -L "$path" ] || readlink "$path"
    done)
}
# Flips every bit of 16 bytes.
flip() { # file offset
    local bytes flipped='' byte
    bytes=$(dd if="$1" bs=1 skip="$2" count=16 2>/dev/null | od -An -v -tu1)
    for byte in $bytes; do flipped+=$(printf '\\%03o' $((byte ^ 255))); done
    # shellcheck disable=SC2059
    printf "$flipped" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null
}

begin $((2048 + size_mib * 5))
story_started=$(now)
printf '%sCopse: %d nodes on this machine, one folder, two deaths, one rotten disk%s\n' "$bold" "$nodes" "$plain"

chapter "A network"
started=$(now)
start_nodes "$nodes"
line "node 1 founds it, $((nodes - 1)) others join with its token; each sees all others after $(since "$started") s"
client join "$network_token" || die "copse join failed"
line "the client joins with the same token"

chapter "A folder"
folder=$work/folder
mkdir -p "$folder/sources" "$folder/an empty directory"
# The checkout's own sources; without git (a tarball), all but what was built.
if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git ls-files -z --cached --others --exclude-standard
else
    find . -name target -prune -o -name .git -prune -o -type f -print0
fi | while IFS= read -r -d '' path; do
    [ -e "$path" ] || continue
    mkdir -p "$folder/sources/$(dirname "$path")"
    cp -p "$path" "$folder/sources/$path"
done
head -c "$((size_mib * 1048576))" /dev/urandom >"$folder/random.bin"
: >"$folder/empty"
ln -s sources/README.md "$folder/link to the readme"
ln -s /nowhere "$folder/dangling"
printf 'a name with a line break\n' >"$folder/$(printf 'two\nlines')"
chmod 600 "$folder/empty"
chmod 750 "$folder/an empty directory"
touch -t 200102030405.06 "$folder/empty" "$folder/an empty directory"
files=$(find "$folder" -type f -exec printf x \; | wc -c | tr -d ' ')
bytes=$(find "$folder" -type f -exec cat {} + | wc -c | tr -d ' ')
line "$files files, $(awk -v b="$bytes" 'BEGIN { printf "%.1f MB", b / 1e6 }'): this checkout's sources, $size_mib MiB of random bytes,"
line "an empty directory, symbolic links, a name with a line break"

chapter "Put"
started=$(now)
client put "$folder" || die "copse put failed"
took=$(since "$started")
capability=$(grep -o -E 'copse1r[a-z0-9]+' "$work/out" | head -n 1)
[ -n "$capability" ] || die "copse put printed no capability"
good "$(rate "$bytes" "$took"), on disk on every holder"
line "who has this can read it, nobody else can, no node can:"
line "$dim$capability$plain"
held=$(du -sk "$work"/nodes/*/store/segments | awk '{ s += $1 } END { printf "%.2f", s * 1024 }')
line "the nodes hold $(awk -v h="$held" -v b="$bytes" 'BEGIN { printf "%.0f MB, %.2f times the folder", h / 1e6, h / b }')"

chapter "List"
client ls "$capability" -l || die "copse ls failed"
head -n 12 "$work/out" | sed 's/^/   /'

chapter "Misfortune"
# Not node 1, which the client joined with: that would also be survived, but hides less.
first=2 second=$((nodes / 2 + 1)) rotten=$nodes
kill_node "$first"
kill_node "$second"
line "nodes $first and $second are killed with -9"
# A few bytes in every half MiB of the third one's files: in nearly every shard it holds.
flips=0
for segment in "$(node_dir "$rotten")"/store/segments/*; do
    length=$(wc -c <"$segment")
    for ((offset = 262144; offset + 16 <= length; offset += 524288)); do
        flip "$segment" "$offset"
        flips=$((flips + 1))
    done
done
[ "$flips" -gt 0 ] || die "node $rotten holds nothing that could be damaged"
line "on the disk of node $rotten bytes are flipped in $flips places"

chapter "Get"
started=$(now)
client get "$capability" "$work/back" || die "copse get failed"
took=$(since "$started")
good "$(rate "$bytes" "$took")"

chapter "Compare"
back=$work/back
manifest "$folder" >"$work/expected"
manifest "$back" >"$work/got"
diff "$work/expected" "$work/got" >&2 || die "names, kinds, modes, times or links differ (above)"
differing=0
while IFS= read -r -d '' path; do
    cmp -- "$folder/$path" "$back/$path" || differing=$((differing + 1))
done < <(cd "$folder" && find . -type f -print0)
[ "$differing" -eq 0 ] || die "$differing files differ"
good "every byte of $files files is the same, and every name, mode, time (to the nanosecond) and link"

printf '\n%sAll well%s after %s s. Everything this started is ended and removed.\n' "$green" "$plain" "$(since "$story_started")"
