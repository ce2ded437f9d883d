# 0: removed, 1: upgraded.
if [ "$1" -eq 0 ] && [ -d /run/systemd/system ]; then
    systemctl --no-reload disable --now opsramp-exporter.socket opsramp-exporter.service >/dev/null 2>&1 || :
fi
