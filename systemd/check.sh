#!/usr/bin/env bash
# Checks the unit, its example configuration and the logrotate snippet.
#
#   systemd/check.sh [BINARY]
#
# Needs systemd-analyze (Debian: systemd); without logrotate or BINARY what they would check is left
# out, and said so. Installs and starts nothing.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# In tenths: the floor for a unit that talks to the internet is about 1.0.
readonly most_exposure=11
readonly unit=opsramp-exporter.service socket=opsramp-exporter.socket

binary=${1-}
command -v systemd-analyze >/dev/null || { echo "systemd-analyze is missing" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

echo "== verify"
# The program need not be installed here; a unit whose program is missing is refused.
sed 's|^ExecStart=/usr/bin/opsramp-exporter |ExecStart=/bin/true |' "$here/$unit" >"$work/$unit"
if ! grep -q '^ExecStart=/bin/true ' "$work/$unit"; then
  echo "ExecStart is not what is expected" >&2
  exit 1
fi
verify() {
  systemd-analyze verify --man=no --recursive-errors=no "$@" >"$work/verify" 2>&1 || {
    cat "$work/verify" >&2
    exit 1
  }
  # It exits with 0 for an unknown key, too.
  if grep -F opsramp-exporter "$work/verify" >&2; then
    exit 1
  fi
}
verify "$work/$unit"
cp "$here/$socket" "$work"
mkdir "$work/$unit.d"
sed 's|^ExecStart=/usr/bin/opsramp-exporter |ExecStart=/bin/true |' "$here/$socket.conf" >"$work/$unit.d/socket.conf"
verify "$work/$unit" "$work/$socket"

echo "== exposure"
systemd-analyze security --offline=true --threshold="$most_exposure" "$here/$unit" >"$work/security" || {
  cat "$work/security" >&2
  exit 1
}
tail -n 1 "$work/security"

echo "== paths"
# What the example configuration names must be what the unit provides.
credential=$(sed -n 's/^LoadCredential=\([^:]*\):.*/\1/p' "$here/$unit")
logs=$(sed -n 's/^LogsDirectory=//p' "$here/$unit")
grep -qF "client_secret_file: /run/credentials/$unit/$credential" "$here/config.yml"
grep -qE "^ +path: /var/log/$logs/[a-z]+\.jsonl$" "$here/config.yml"
# The drop-in changes nothing else about how the program is started.
grep -qxF "$(grep '^ExecStart=.' "$here/$unit") --web.systemd-socket" "$here/$socket.conf"
grep -qE "^/var/log/private/$logs/\*\.jsonl \{$" "$here/logrotate"

echo "== example configuration"
if [[ -n $binary ]]; then
  env -i "$binary" --config.file="$here/config.yml" --config.check
else
  echo "left out: no BINARY given"
fi

echo "== logrotate"
if PATH=$PATH:/usr/sbin command -v logrotate >/dev/null; then
  mkdir "$work/logs"
  echo line >"$work/logs/alerts.jsonl"
  # Run by a user that is not root, "su" is refused; the signal is for a service that is not here.
  sed -e "s|^/var/log/private/$logs/|$work/logs/|" -e '/^    su /d' -e 's|systemctl reload .*|touch '"$work"'/signalled|' \
    "$here/logrotate" >"$work/logrotate.conf"
  chmod 0644 "$work/logrotate.conf"
  PATH=$PATH:/usr/sbin logrotate --force --state "$work/state" "$work/logrotate.conf"
  [[ -e $work/logs/alerts.jsonl.1 && ! -e $work/logs/alerts.jsonl && -e $work/signalled ]] || {
    echo "logrotate did not do what it should" >&2
    ls -l "$work/logs" >&2
    exit 1
  }
else
  echo "left out: no logrotate here"
fi
echo "all is well"
