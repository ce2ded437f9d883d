# 1: installed, 2: upgraded. Nothing is started that is not configured.
if [ "$1" -eq 1 ] && [ -x /usr/bin/systemctl ]; then
    systemctl --no-reload preset opsramp-exporter.service opsramp-exporter.socket >/dev/null 2>&1 || :
fi
[ ! -d /run/systemd/system ] || systemctl daemon-reload >/dev/null 2>&1 || :
