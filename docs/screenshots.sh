#!/usr/bin/env bash
# Makes the screenshots of the page in docs/images, from the demo.
#
#   docs/screenshots.sh BINARY
#
# Needs chromium and Python.
set -euo pipefail

if [[ $# -ne 1 || ! -x $1 ]]; then
  echo "usage: ${0##*/} BINARY" >&2
  exit 2
fi
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
binary=$(realpath -- "$1")
work=$(mktemp -d)
demo=
finish() {
  if [[ -n $demo ]]; then
    kill "$demo" 2>/dev/null || true
    wait "$demo" 2>/dev/null || true
  fi
  rm -rf -- "$work"
}
trap finish EXIT

"$binary" demo --web.listen-address 127.0.0.1:0 --simulator.listen-address 127.0.0.1:0 >"$work/lines" 2>"$work/log" &
demo=$!
# Until something has happened that is worth to be seen.
until [[ $(wc -l <"$work/lines") -ge 60 ]]; do
  kill -0 "$demo" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
  sleep 0.5
done
page=$(sed -n 's/^demo: page *\(http[^ ]*\).*/\1/p' "$work/log")
python3 "$here/../tests/page/browser.py" "$page" --shots "$work"
mkdir -p "$here/images"
cp -- "$work/page-desktop-light.png" "$work/page-phone-dark.png" "$here/images"
