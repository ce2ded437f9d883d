#!/usr/bin/env bash
# Runs every benchmark and writes their figures into docs/performance.md, between its markers.
#
#   benches/run.sh            everything: about forty minutes, and the release build before it
#   benches/run.sh --quick    fewer and smaller rounds: some minutes; prints, and writes nothing
#   benches/run.sh --print    everything, but prints instead of writing
#
# OPSRAMP_BENCH_BIN names another binary to measure, OPSRAMP_BENCH_DIR a folder on another disk.
# Nothing else should run on the machine meanwhile. The other programs that are compared with are
# taken where they are installed: python3, curl, jq, and opcli in target/test-venv, as ./test.sh
# makes it. PostgreSQL's server programs have to be there.
set -euo pipefail
cd "$(dirname "$0")/.."

quick=() write=yes
for argument; do
    case $argument in
        --quick) quick=(--quick) write= ;;
        --print) write= ;;
        *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' benches/run.sh >&2; exit 2 ;;
    esac
done

for marker in begin end; do
    grep -q "^<!-- figures: $marker" docs/performance.md || { echo "docs/performance.md has lost its marker '$marker'" >&2; exit 1; }
done

# Before the build, which is a load of its own.
load=$(cut -d' ' -f1 /proc/loadavg)
if [ ${#quick[@]} -eq 0 ] && [ -z "${OPSRAMP_BENCH_BIN:-}" ]; then
    cargo build --locked --release
    # Aside: the benchmarks have one built of their own profile, in its place.
    export OPSRAMP_BENCH_BIN="$PWD/target/bench-opsramp-exporter"
    cp target/release/opsramp-exporter "$OPSRAMP_BENCH_BIN"
fi
cargo bench --locked --no-run

tables=$(mktemp)
rows=$(mktemp)
trap 'rm -f "$tables" "$rows"' EXIT
export OPSRAMP_BENCH_REPORT="$rows"

machine() {
    local processor memory disk
    processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    memory=$(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)
    disk=$(stat -f -c %T "${OPSRAMP_BENCH_DIR:-target}")
    printf 'Measured %s on %s cores (%s), %s, %s, Linux %s, %s, at commit %s, with a load of %s before.\n' \
        "$(date -u +%F)" "$(nproc)" "${processor:-$(uname -m)}" "$memory" "$disk" "$(uname -r)" \
        "$(rustc --version | cut -d' ' -f1-2)" "$(git describe --always --dirty 2>/dev/null || echo unknown)" \
        "$load"
    printf 'Others: %s, %s, %s, %s.\n' "$(python3 --version)" "$(curl --version | cut -d' ' -f1-2 | head -n 1)" \
        "$(jq --version)" "$(find /usr/lib/postgresql -name postgres -exec {} --version \; | tail -n 1)"
}

# A benchmark, and its rows as a table.
measure() {
    local bench=$1
    : > "$rows"
    printf '\n== %s\n' "$bench"
    cargo bench --locked --bench "$bench" -- "${quick[@]}"
    {
        printf '\n### `cargo bench --bench %s`\n\n| what | figure | goal | holds |\n| --- | --- | --- | --- |\n' "$bench"
        cat "$rows"
    } >> "$tables"
}

machine > "$tables"
for bench in tracking exposition delivery postgres daemon; do
    measure "$bench"
done

if [ -n "$write" ]; then
    awk -v tables="$tables" '
        /^<!-- figures: begin/ { print; while ((getline line < tables) > 0) print line; skip = 1 }
        /^<!-- figures: end/ { skip = 0 }
        !skip
    ' docs/performance.md > "$rows"
    cat "$rows" > docs/performance.md
    printf '\nwritten to docs/performance.md\n'
else
    printf '\n'
    cat "$tables"
fi
