#!/usr/bin/env bash
# Checks the dashboards and rules: the files themselves, the rules' tests, and every query in a real
# Prometheus, which must tell the same of one exporter and of two replicas. With --live BINARY the
# queries are also asked of a Prometheus that scrapes BINARY's demo.
#
#   dashboards/check.sh [--live BINARY]
#
# Needs prometheus, promtool and python3 with PyYAML (Debian: prometheus, python3-yaml). Listens on
# free loopback ports only, and ends what it started.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# So long is the demo scraped, every second, before it is asked.
readonly scraped_seconds=40

binary=
if [[ ${1-} == --live && $# -eq 2 ]]; then
  binary=$2
elif [[ $# -gt 0 ]]; then
  echo "usage: ${0##*/} [--live BINARY]" >&2
  exit 2
fi

for program in prometheus promtool python3; do
  command -v "$program" >/dev/null || { echo "$program is missing" >&2; exit 1; }
done
python3 -c 'import yaml' 2>/dev/null || { echo "python3 has no yaml (PyYAML)" >&2; exit 1; }
if [[ -n $binary && ! -x $binary ]]; then
  echo "$binary is no program" >&2
  exit 1
fi

. "$here/../tests/support/processes.sh"

demo=
if [[ -n $binary ]]; then
  start_demo "$binary"
  demo=127.0.0.1:$(find_in "$work/demo.log" '^demo: metrics +http://localhost:([0-9]+).*')
fi

{
  echo "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}"
  echo "rule_files: ['$here/rules/*.rules.yml']"
  echo "scrape_configs:"
  if [[ -n $demo ]]; then
    echo "  - {job_name: opsramp-exporter, static_configs: [{targets: ['$demo']}]}"
  fi
} >"$work/prometheus.yml"
promtool check config "$work/prometheus.yml" >/dev/null
# The past of one exporter, and of two replicas: far enough back to be in nobody's way.
python3 "$here/replicas.py" data >"$work/replicas.om"
promtool tsdb create-blocks-from openmetrics "$work/replicas.om" "$work/data" >/dev/null
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" \
  --storage.tsdb.retention.time=100y --web.listen-address=127.0.0.1:0 >"$work/prometheus.log" 2>&1 &
started+=($!)
address=http://$(find_in "$work/prometheus.log" '.*msg="?Listening on"? address=([0-9.]+:[0-9]+).*')
find_in "$work/prometheus.log" '.*(Server is ready to receive web requests).*' >/dev/null

# The demo is scraped meanwhile.
echo "== rules"
promtool check rules "$here"/rules/*.rules.yml
promtool test rules "$here"/rules/tests/*.yml

echo "== Grafana's rules: the copy about open alerts by the tests of the original, the other by its own;" \
  "panels by theirs"
mkdir "$work/grafana" "$work/grafana/tests"
cp "$here/rules/tests/open-alerts.test.yml" "$here"/grafana/tests/*.yml "$work/grafana/tests"
python3 "$here/check.py" grafana >"$work/grafana/opsramp-exporter.rules.yml"
promtool test rules "$work"/grafana/tests/*.yml

echo "== files"
python3 "$here/check.py" files

echo "== every query, parsed by Prometheus"
python3 "$here/check.py" parse "$address"

echo "== every query, asked about one exporter and about two replicas"
python3 "$here/replicas.py" compare "$address"

if [[ -n $demo ]]; then
  echo "== the demo's metrics"
  python3 -c 'import sys, urllib.request
sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())' \
    "http://$demo/metrics" | promtool check metrics
  echo "== every query, asked of a Prometheus that scrapes the demo"
  python3 "$here/check.py" live "$address" "$scraped_seconds"
fi
echo "all is well"
