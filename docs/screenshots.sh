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
. "$here/../tests/support/processes.sh"

start_demo "$binary"
page=$(find_in "$work/demo.log" '^demo: page *(http[^ ]*).*')
# Until something has happened that is worth to be seen.
until [[ $(wc -l <"$work/demo.lines") -ge 60 ]]; do
  kill -0 "${started[-1]}" 2>/dev/null || { cat "$work/demo.log" >&2; exit 1; }
  sleep 0.5
done
python3 "$here/../tests/page/browser.py" "$page" --shots "$work"
mkdir -p "$here/images"
cp -- "$work/page-desktop-light.png" "$work/page-phone-dark.png" "$here/images"
