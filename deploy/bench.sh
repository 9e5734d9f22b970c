#!/usr/bin/env bash
# Measures. Each figure stands beside something measured in the same run, since absolute figures
# drift with the machine. docs/benchmarks.md holds what was seen. BENCH_MIB, BENCH_ROUNDS and
# BENCH_LARGE_MIB make the last part smaller.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CARGO:=cargo}"

"$CARGO" bench --package copse-core --bench pipeline
"$CARGO" bench --package copse-core --bench ring
"$CARGO" bench --package copse-core --bench repair
"$CARGO" bench --workspace --bench store
"$CARGO" bench --workspace --bench rebuild
"$CARGO" bench --workspace --bench cluster
"$CARGO" run --release --workspace --bin copse-sim --locked -- speed
