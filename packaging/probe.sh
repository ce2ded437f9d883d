# What check.sh runs in the container, after a line that sets `simulator`. Every step must succeed.
set -eEuo pipefail
trap 'echo "failed: $BASH_COMMAND"; journalctl -u opsramp-exporter -o cat --no-pager | tail -n 20' ERR

readonly etc=/etc/opsramp-exporter
readonly state=/var/lib/private/opsramp-exporter logs=/var/log/private/opsramp-exporter
within() { # SECONDS COMMAND…: until the command succeeds
  local tries=$(($1 * 10))
  shift
  until "$@"; do
    ((tries-- > 0)) || return 1
    sleep 0.1
  done
}
property() { systemctl show -P "$1" opsramp-exporter; }
is() { [[ $(property "$1") == "$2" ]]; }
opened() { grep -cs '"event":"opened"' "$logs/alerts.jsonl"; }

dpkg --install /opt/opsramp-exporter.deb >/dev/null
# Nothing runs and nothing will at the next boot before it is configured.
is ActiveState inactive
is UnitFileState disabled
[[ $(stat -c %a:%U "$etc/client-secret") == 600:root ]]
opsramp-exporter --config.file="$etc/config.yml" --config.check >/dev/null
echo "installed"

# As docs/installation.md says.
echo demo-secret >"$etc/client-secret"
sed -i -e "s|https://acme.api.opsramp.com|$simulator|" -e 's/YOUR-KEY/demo-key/' -e 's/client_1234/client_1/' \
  -e 's/127.0.0.1:10836/127.0.0.1:0/' "$etc/config.yml"
systemctl enable --now --quiet opsramp-exporter
within 30 opened >/dev/null
[[ -s $state/state.db ]]
echo "started"

# The same version once more is what an upgrade is to dpkg: the service goes on with the new program.
before=$(property MainPID)
dpkg --install /opt/opsramp-exporter.deb >/dev/null
is ActiveState active
[[ $(property MainPID) != "$before" ]]
grep -q demo-key "$etc/config.yml"
sleep 2
[[ $(sort "$logs/alerts.jsonl" | uniq -d | wc -l) == 0 ]]
echo "upgraded"

dpkg --remove opsramp-exporter >/dev/null
is ActiveState inactive
[[ ! -e /usr/bin/opsramp-exporter && -s $etc/config.yml && -s $etc/client-secret ]]
[[ -s $state/state.db && -s $logs/alerts.jsonl ]]
echo "removed"

dpkg --install /opt/opsramp-exporter.deb >/dev/null
is ActiveState inactive
is UnitFileState enabled
# What the documents tell people to put there goes as well: no key stays behind.
touch "$etc/web.yml" "$etc/server.key"
dpkg --purge opsramp-exporter >/dev/null
left=$(find /etc /usr /var/lib /var/log -path /var/lib/dpkg -prune -o -name '*opsramp*' -print)
[[ -z $left ]] || { echo "$left"; false; }
echo "all is well"
