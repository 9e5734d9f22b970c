#!/usr/bin/env bash
# Checks that need no compiler: every source file says what it is, documents point at things that
# exist inside this checkout, shell scripts parse.
set -euo pipefail
cd "$(dirname "$0")/.."

failures=0
fail() {
    printf 'sources: %s\n' "$*" >&2
    failures=$((failures + 1))
}

# Tracked files, and new ones that are not ignored; a tarball has no git.
files() {
    if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
        git ls-files --cached --others --exclude-standard -- "$@"
    else
        local pattern
        for pattern in "$@"; do find . -path ./target -prune -o -name "${pattern##*/}" -type f -print | sed 's|^\./||'; done
    fi
}

# Every Rust file opens with a line that says what it owns.
while IFS= read -r file; do
    [ -f "$file" ] || continue
    head -n 1 "$file" | grep -q -E '^//! .{3,}' || fail "$file: does not open with a //! line that says what it owns"
done < <(files '*.rs')

# Every relative link in a document leads to something in this checkout.
root=$PWD
while IFS= read -r file; do
    [ -f "$file" ] || continue
    while IFS= read -r link; do
        target=${link%%#*}
        [ -n "$target" ] || continue
        case $target in *://* | mailto:*) continue ;; esac
        resolved=$(realpath -m "$(dirname "$file")/$target")
        case $resolved in
        "$root" | "$root"/*) [ -e "$resolved" ] || fail "$file: link to $link, which does not exist" ;;
        *) fail "$file: link to $link leaves the checkout" ;;
        esac
    done < <(sed 's/`[^`]*`//g' "$file" | grep -o -E '\]\([^) ]+\)' | sed -E 's/^\]\(//; s/\)$//')
    # A `make` target that a document names must be there.
    while IFS= read -r target; do
        grep -q -E "^$target:" Makefile || fail "$file: names 'make $target', which the Makefile does not have"
    done < <(grep -o -E '`make [a-z-]+`' "$file" | sed -E 's/`make ([a-z-]+)`/\1/' | sort -u)
done < <(files '*.md')

# The promises and invariants in ARCHITECTURE.md name tests: `crate::path::test_name`. Each must exist as a function.
if [ -f ARCHITECTURE.md ]; then
    while IFS= read -r test; do
        grep -r -q -E --include='*.rs' "fn ${test##*::}\(" . --exclude-dir=target ||
            fail "ARCHITECTURE.md: names the test $test, which does not exist"
    done < <(grep -E "^\| [0-9]+\. " ARCHITECTURE.md | grep -o -E '`(core|proto|node|client|sim)(::[a-z0-9_]+)+`' | tr -d '`' | sort -u)
fi

# The unit allows what the node needs; AF_UNIX is its control socket.
unit=deploy/systemd/copse-node.service
for family in AF_INET AF_INET6 AF_UNIX; do
    grep -q -E "^RestrictAddressFamilies=(.* )?$family( |\$)" "$unit" || fail "$unit: RestrictAddressFamilies lacks $family"
done

# Nothing here depends on somebody's home or on what lies beside the checkout.
if hits=$(files '*' | grep -v -E '(^|/)(Cargo\.lock|LICENSE-.*)$' | tr '\n' '\0' |
    xargs -0 grep -n -I -E '(^|[^A-Za-z0-9_*/.-])/(root|home/[a-z]+)/|(^|[^./])\.\./[s]hared' 2>/dev/null | grep -v '^deploy/check-sources\.sh:'); then
    fail "paths outside this checkout:"
    printf '%s\n' "$hits" >&2
fi

# No merge was left half done.
if hits=$(files '*' | tr '\n' '\0' | xargs -0 grep -n -I -E '^(<<<<<<<|>>>>>>>) ' 2>/dev/null); then
    fail "merge conflicts:"
    printf '%s\n' "$hits" >&2
fi

# Shell scripts parse; shellcheck looks closer where it is installed.
while IFS= read -r file; do
    [ -f "$file" ] || continue
    read -r first <"$file" || true
    case $first in
    '#!/bin/sh') sh -n "$file" || fail "$file: syntax" ;;
    '#!/usr/bin/env bash') bash -n "$file" || fail "$file: syntax" ;;
    *)
        [ "${file##*.}" = sh ] && fail "$file: opens with neither #!/bin/sh nor #!/usr/bin/env bash"
        continue
        ;;
    esac
    [ -x "$file" ] || fail "$file: not executable"
    if command -v shellcheck >/dev/null 2>&1; then shellcheck -x -S warning "$file" || fail "$file: shellcheck"; fi
done < <(files '*.sh' '.ci/run')

if [ "$failures" -gt 0 ]; then
    echo "sources: $failures wrong" >&2
    exit 1
fi
echo "sources: all in order"
