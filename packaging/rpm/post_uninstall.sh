# 0: removed, 1: upgraded. State and logs stay.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload >/dev/null 2>&1 || :
    [ "$1" -eq 0 ] || systemctl try-restart opsramp-exporter.service >/dev/null 2>&1 || :
fi
