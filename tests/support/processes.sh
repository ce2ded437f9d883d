# To be sourced by checks that start programs. Makes `work`, a folder for the output of the programs.
# At the end of the script, the programs are stopped and the folder is removed.

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

# start_demo BINARY: starts the demo on free ports. Its alert lines go to $work/demo.lines, its
# diagnostics to $work/demo.log.
start_demo() {
  "$1" demo --web.listen-address 127.0.0.1:0 --simulator.listen-address 127.0.0.1:0 \
    >"$work/demo.lines" 2>"$work/demo.log" &
  started+=($!)
}

# find_in FILE PATTERN: waits until the program that was started last has written a line to FILE
# that matches PATTERN (sed -E, with one group), and prints the group.
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
