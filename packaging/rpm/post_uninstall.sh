# 0: removed, 1: upgraded. State and logs stay.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload >/dev/null 2>&1 || :
    [ "$1" -eq 0 ] || systemctl try-restart opsramp-exporter.service >/dev/null 2>&1 || :
fi
# The package owns files only. Folders that hold something of yours stay.
if [ "$1" -eq 0 ]; then
    share=/usr/share/opsramp-exporter doc=/usr/share/doc/opsramp-exporter
    for folder in "$share/systemd" "$share/dashboards" "$share/rules" "$share" "$doc/docs" "$doc" \
        /usr/share/licenses/opsramp-exporter /etc/opsramp-exporter; do
        rmdir "$folder" 2>/dev/null || :
    done
fi
