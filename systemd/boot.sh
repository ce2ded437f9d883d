#!/usr/bin/env bash
# Runs the units under a real systemd: boots Debian in systemd-nspawn, starts the service against the
# simulator of BINARY's demo, reloads it, rotates its log, lets it hang, starts it by its socket, lets
# it wait for an address, stops it, and gives it a configuration that is wrong.
#
#   systemd/boot.sh BINARY TREE
#
# TREE is a folder with a Debian, see nspawn.sh.
set -euo pipefail

if [[ $# -ne 2 || ! -x $1 ]]; then
  echo "usage: ${0##*/} BINARY TREE" >&2
  exit 2
fi
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
binary=$1
tree=$2
. "$here/../tests/support/processes.sh"

start_demo "$binary"
simulator=$(find_in "$work/demo.log" '^demo: simulator *(http[^ ]*).*')

# What is laid over the tree. The container shares our network, so the port is any that is free.
install -D -m 0755 "$binary" "$work/root/usr/bin/opsramp-exporter"
install -D -m 0644 "$here/opsramp-exporter.service" "$work/root/etc/systemd/system/opsramp-exporter.service"
install -D -m 0644 "$here/opsramp-exporter.socket" "$work/root/etc/systemd/system/opsramp-exporter.socket"
# systemd wants to know the port.
port=$(python3 -c 'import socket; it = socket.create_server(("127.0.0.1", 0)); print(it.getsockname()[1])')
sed -i "s/^ListenStream=.*/ListenStream=127.0.0.1:$port/" "$work/root/etc/systemd/system/opsramp-exporter.socket"
install -D -m 0644 "$here/opsramp-exporter.socket.conf" "$work/root/opt/socket.conf"
install -D -m 0644 "$here/logrotate" "$work/root/etc/logrotate.d/opsramp-exporter"
install -D -m 0600 /dev/stdin "$work/root/etc/opsramp-exporter/client-secret" <<<demo-secret
sed -e "s|https://acme.api.opsramp.com|$simulator|" -e 's/YOUR-KEY/demo-key/' -e 's/client_1234/client_1/' \
  -e 's/127.0.0.1:10836/127.0.0.1:0/' "$here/config.yml" \
  | install -D -m 0644 /dev/stdin "$work/root/etc/opsramp-exporter/config.yml"

install -D -m 0755 /dev/stdin "$work/root/usr/local/bin/probe" <<'PROBE'
#!/bin/bash
# Inside: every step must succeed; the last line says so.
set -eEuo pipefail
trap 'echo "failed: $BASH_COMMAND"; diagnostics | tail -n 20' ERR

within() { # SECONDS COMMAND…: until the command succeeds
  local tries=$(($1 * 10))
  shift
  until "$@"; do
    ((tries-- > 0)) || return 1
    sleep 0.1
  done
}
status() { [[ $(property StatusText) == $1* ]]; }
property() { systemctl show -P "$1" opsramp-exporter; }
diagnostics() { journalctl -u opsramp-exporter -t opsramp-exporter -o cat --no-pager; }
# grep reads to the end: with -q it would break the pipe, which counts as a failure.
says() { diagnostics | grep -- "$1" >/dev/null; }
has_lines() { journalctl -t opsramp-alert -o cat --no-pager | grep . >/dev/null; }
was_restarted() { [[ $(property NRestarts) == 1 && $(property ActiveState) == active ]]; }
has_failed() { [[ $(property ActiveState) == failed ]]; }
is_active() { [[ $(property ActiveState) == active ]]; }
metric() {
  local port
  port=$(diagnostics | sed -n 's/.*listening on http:\/\/127.0.0.1:\([0-9]*\)".*/\1/p' | tail -n 1)
  metric_at "$port" "$1"
}
metric_at() { # PORT PATTERN
  exec 3<>"/dev/tcp/127.0.0.1/$1"
  printf 'GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
  cat <&3 >/tmp/metrics
  grep -q -- "$2" /tmp/metrics
}
readonly logs=/var/log/private/opsramp-exporter

# It says itself that it is ready: then a scrape is answered.
systemctl start opsramp-exporter
# The journal may be a moment behind with the line that names the port.
within 5 says 'listening on'
metric '^opsramp_exporter_build_info'
within 10 metric '^opsramp_up{.*} 1$'
within 10 status 'polling 1 search'
metric '^process_start_time_seconds '
within 10 grep -q '"event":"opened"' "$logs/alerts.jsonl"
within 10 has_lines
[[ -e /var/lib/private/opsramp-exporter/state.db ]]
grep -q 'CapBnd:.*0000000000000000' "/proc/$(property MainPID)/status"
systemd-analyze security --threshold=11 opsramp-exporter >/dev/null
echo "started"

# As docs/installation.md says; root also reads the credential where the configuration says it is.
as_documented() {
  env STATE_DIRECTORY=/var/lib/opsramp-exporter "$@" \
    opsramp-exporter --config.file=/etc/opsramp-exporter/config.yml check >/run/check || { cat /run/check; return 1; }
}
as_documented OPSRAMP_CLIENT_SECRET_FILE=/etc/opsramp-exporter/client-secret
as_documented
echo "checked"

systemctl reload opsramp-exporter
within 5 says 'the configuration was loaded again'
sed -i 's/^searches:/sarches:/' /etc/opsramp-exporter/config.yml
systemctl reload opsramp-exporter
within 5 metric '^opsramp_exporter_config_last_reload_successful 0$'
metric '^opsramp_up{.*} 1$'
within 10 status 'polling 1 search; the configuration cannot be loaded again'
sed -i 's/^sarches:/searches:/' /etc/opsramp-exporter/config.yml
echo "reloaded"

logrotate --force /etc/logrotate.d/opsramp-exporter
[[ -s $logs/alerts.jsonl.1 ]]
within 90 test -s "$logs/alerts.jsonl"
metric '^opsramp_sink_errors_total{sink="file"} 0$'
echo "rotated"

# One that hangs is ended and started again.
printf '[Service]\nWatchdogSec=2s\nRestartSec=0\n' >/run/impatient.conf
install -D -m 0644 /run/impatient.conf /run/systemd/system/opsramp-exporter.service.d/impatient.conf
systemctl daemon-reload
systemctl restart opsramp-exporter
kill -STOP "$(property MainPID)"
within 30 was_restarted
within 10 metric '^opsramp_up{.*} 1$'
rm -r /run/systemd/system/opsramp-exporter.service.d
systemctl daemon-reload
echo "ended by the watchdog"

# As docs/installation.md says, while the service runs. `systemctl edit` reloads by itself.
install -D -m 0644 /opt/socket.conf /etc/systemd/system/opsramp-exporter.service.d/socket.conf
systemctl daemon-reload
systemctl enable --quiet opsramp-exporter.socket && systemctl restart opsramp-exporter
readonly socket=$(systemctl show -P Listen opsramp-exporter.socket | sed 's/.*:\([0-9]*\) .*/\1/')
metric_at "$socket" '^opsramp_exporter_build_info'
# A scrape that comes while it is stopped starts it, and waits for it.
systemctl stop opsramp-exporter 2>/dev/null
metric_at "$socket" '^opsramp_exporter_build_info'
within 10 metric '^opsramp_up{.*} 1$'
systemctl disable --quiet opsramp-exporter.socket
systemctl stop opsramp-exporter.socket opsramp-exporter
rm -r /etc/systemd/system/opsramp-exporter.service.d
systemctl daemon-reload
echo "started by its socket"

# An address that comes late (a virtual one, DHCP) is waited for, however often it takes.
sed -i.own 's/127.0.0.1:0/192.0.2.77:0/' /etc/opsramp-exporter/config.yml
printf '[Service]\nRestartSec=100ms\n' >/run/often.conf
install -D -m 0644 /run/often.conf /run/systemd/system/opsramp-exporter.service.d/often.conf
systemctl daemon-reload
if systemctl start opsramp-exporter 2>/dev/null; then false; fi
was_tried() { (($(property NRestarts) > 12)); }
within 30 was_tried
mv /etc/opsramp-exporter/config.yml.own /etc/opsramp-exporter/config.yml
within 10 is_active
rm -r /run/systemd/system/opsramp-exporter.service.d
systemctl daemon-reload
systemctl stop opsramp-exporter
[[ $(property Result) == success && $(property ExecMainStatus) == 0 ]]
echo "stopped"

# As docs/security.md says: a web configuration file that root alone can read is a credential.
install -m 0600 /dev/stdin /etc/opsramp-exporter/web.yml <<'WEB'
basic_auth_users: {prometheus: $2y$10$CMq2l.v60gC.o0f4sxlDTuqb.gAcG0rEPzc08qR8MuqV3wdmXZty2}
WEB
cp /etc/opsramp-exporter/config.yml /run/config.yml
sed -i 's|^web:|&\n  config_file: /run/credentials/opsramp-exporter.service/web.yml|' /etc/opsramp-exporter/config.yml
printf '[Service]\nLoadCredential=web.yml:/etc/opsramp-exporter/web.yml\n' >/run/web.conf
install -D -m 0644 /run/web.conf /run/systemd/system/opsramp-exporter.service.d/web.conf
systemctl daemon-reload
systemctl start opsramp-exporter
within 5 metric '401 Unauthorized'
systemctl stop opsramp-exporter
rm -r /run/systemd/system/opsramp-exporter.service.d
systemctl daemon-reload
echo "asked for a password"

sed 's/^searches:/sarches:/' /run/config.yml >/etc/opsramp-exporter/config.yml

# Whoever starts it is told at once.
if systemctl start opsramp-exporter 2>/dev/null; then false; fi
within 5 has_failed
within 5 says 'sarches: unknown key'
sleep 6
[[ $(property ExecMainStatus) == 2 && $(property NRestarts) == 0 ]]
echo "all is well"
PROBE

"$here/nspawn.sh" "$tree" "$work/root"
