#!/usr/bin/env bash
# Looks at the page in a real browser, at several sizes, light and dark: see browser.py. What it shows
# are alerts that want to break it, and searches, a tenant and a sink that do not work.
#
#   tests/page/check.sh BINARY [FOLDER]
#
# FOLDER gets screenshots. Needs chromium, curl and Python.
set -euo pipefail

if [[ $# -lt 1 || ! -x $1 ]]; then
  echo "usage: ${0##*/} BINARY [FOLDER]" >&2
  exit 2
fi
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
binary=$(realpath -- "$1")
. "$here/../support/processes.sh"

start_demo "$binary"
simulator=$(find_in "$work/demo.log" '^demo: simulator *(http[^ ]*).*')

control() { curl -sSf --output /dev/null -d "$2" "$simulator/simulator/$1"; }
readonly hostile='<script>document.title = 1</script><img src=x onerror=alert(1)>" onmouseover="alert(2)'
readonly long='AWordWithoutAnyBreakThatGoesOnAndOnAndOnUntilItsEndWhichIsWellBeyondTheEdgeOfEveryPhoneThereIs'
control tenants '{"id": "client_2", "alerts": 3}'
control tenants/client_1/alerts "$(HOSTILE="$hostile" python3 -c 'import json, os; print(json.dumps({"subject": os.environ["HOSTILE"]}))')"
control tenants/client_1/alerts "{\"subject\": \"$long\"}"

echo demo-secret >"$work/secret"
cat >"$work/config.yml" <<CONFIG
accounts:
  - name: acme
    url: $simulator
    client_id: demo-key
    client_secret_file: $work/secret
    tenants: [{ id: client_1, name: retail }, { id: client_2, name: $long }, { id: client_3, name: not there }]
  - name: nobody
    url: http://127.0.0.1:9
    client_id: demo-key
    client_secret_file: $work/secret
    tenants: [{ id: client_1 }]
searches:
  - { name: open, query: "actions:OPEN", interval: 2s, group_by: [state, source, alert_type] }
  - { name: critical, query: "actions:OPEN+states:Critical", interval: 5s }
log:
  sinks:
    - { name: stdout, type: stdout, format: json }
    - { name: loki, type: otlp, endpoint: "http://127.0.0.1:9/otlp/v1/logs" }
state: { path: $work/state.db }
web: { listen_addresses: ["127.0.0.1:0"] }
CONFIG
"$binary" --config.file="$work/config.yml" >"$work/lines" 2>"$work/log" &
started+=($!)
page=$(find_in "$work/log" '.*listening on (http://[0-9.:]*)".*')
find_in "$work/lines" ".*($long).*" >/dev/null
# Both accounts have been tried.
for ((tries = 0; tries < 600; tries++)); do
  ! curl -sSf --output /dev/null "$page/-/ready" 2>/dev/null || break
  sleep 0.1
done

python3 "$here/browser.py" "$page/" ${2:+--shots "$2"} --contains "$hostile" --contains "$long" \
  --contains 'searches in trouble' --contains 'not there / open' --contains connect
