#!/usr/bin/env bash
# Fuzzes each target for a while and keeps what was learnt: fuzz/run.sh [SECONDS [TARGET …]]
#
# What breaks a target is added to its corpus, where `cargo test` replays it, and ends the run.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-600}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(search_answer token_answer query_string configuration web_configuration torn_file)

# cargo-fuzz wants flags that the stable compiler knows and hides.
export RUSTC_BOOTSTRAP=1 PATH="$PWD/target/tools/bin:$PATH"
cargo install --quiet --locked --debug --root target/tools cargo-fuzz@0.13.2

# No sanitizer: none of our code is unsafe, and twice as many inputs a second find more.
cargo fuzz build --sanitizer none
binaries=fuzz/target/$(rustc -vV | sed -n 's/^host: //p')/release

for target in "${targets[@]}"; do
    # Everything that reaches something new is collected here; a few of them end in the repository.
    work=fuzz/target/work/$target corpus=fuzz/corpus/$target crashes=fuzz/artifacts/$target/
    # What an earlier run found is in the corpus, or was taken out of it.
    rm -rf -- "$crashes"
    mkdir -p "$work" "$crashes"
    dictionary=fuzz/dictionaries/$target.dict
    options=(-max_len=4096 -timeout=10 -artifact_prefix="$crashes")
    [ ! -f "$dictionary" ] || options+=(-dict="$dictionary")
    if ! "$binaries/$target" "${options[@]}" -max_total_time="$seconds" -print_final_stats=1 "$work" "$corpus" \
        2>"fuzz/target/work/$target.log"; then
        tail -n 40 "fuzz/target/work/$target.log"
        find "$crashes" -type f -exec cp {} "$corpus" \;
        echo "$target: found something, which is now in $corpus" >&2
        exit 1
    fi
    # What reaches edges that the corpus does not reach yet: the fewest of the short ones.
    if ! "$binaries/$target" -max_len=400 -use_counters=0 -set_cover_merge=1 "$corpus" "$work" 2>"$work.merge.log"; then
        tail -n 40 "$work.merge.log"
        echo "$target: what the run has learnt could not be added to $corpus" >&2
        exit 1
    fi
    grep -E '^(stat::number_of_executed_units|stat::average_exec_per_sec)' "fuzz/target/work/$target.log" |
        sed "s/^stat::/$target: /"
done
