#!/usr/bin/env bash
# Has systemd read the units: misspelt settings, values that it does not take. Starts nothing.
#
# Exit codes: 0 all in order, 1 something is wrong, 77 there is no systemd here
set -euo pipefail
cd "$(dirname "$0")/.."

command -v systemd-analyze >/dev/null 2>&1 || {
    echo "units: SKIPPED, there is no systemd-analyze"
    exit 77
}
work=$(mktemp -d "${TMPDIR:-/tmp}/copse-units.XXXXXX")
trap 'rm -rf "$work"' EXIT
for unit in deploy/systemd/*.service; do
    # It also looks whether the program is there, which is not installed here.
    sed -E 's|^(Exec[A-Za-z]*=)[^ ]+|\1/bin/true|' "$unit" >"$work/${unit##*/}"
done
# What is only a warning (an unknown setting is left out) would be a weaker unit than the one written.
systemd-analyze verify "$work"/*.service >"$work/said" 2>&1 || {
    cat "$work/said" >&2
    exit 1
}
if grep -F "$work/" "$work/said" >&2; then exit 1; fi
echo "units: all in order"
