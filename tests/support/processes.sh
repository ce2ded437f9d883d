# To be sourced by the checks that start programs: `work`, a folder for what those write, and an end
# of both with the script.

work=$(mktemp -d)
started=()
finish() {
  local status=$? pid
  for pid in "${started[@]}"; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  rm -rf -- "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start_demo BINARY: on free ports. Its alerts are in $work/demo.lines, what it says in $work/demo.log.
start_demo() {
  "$1" demo --web.listen-address 127.0.0.1:0 --simulator.listen-address 127.0.0.1:0 \
    >"$work/demo.lines" 2>"$work/demo.log" &
  started+=($!)
}

# find_in FILE PATTERN: waits until what was started last has written a line to the file that the
# pattern (sed -E, one group) matches, and prints the group.
find_in() {
  local tries found
  for ((tries = 0; tries < 600; tries++)); do
    found=$(sed -nE "s|$2|\1|p" "$1" 2>/dev/null | sed -n 1p) || true
    [[ -z $found ]] || { echo "$found"; return; }
    kill -0 "${started[-1]}" 2>/dev/null || break
    sleep 0.1
  done
  echo "it did not come up; it said:" >&2
  cat -- "$1" >&2
  return 1
}
