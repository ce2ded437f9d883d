# 0: removed, 1: upgraded. Without a systemd that runs, as in an image that is built, nothing has to be stopped.
if [ "$1" -eq 0 ] && [ -x /usr/bin/systemctl ]; then
    now=
    [ ! -d /run/systemd/system ] || now=--now
    systemctl --no-reload disable $now opsramp-exporter.socket opsramp-exporter.service >/dev/null 2>&1 || :
fi
