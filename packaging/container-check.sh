#!/usr/bin/env bash
# Builds the image's last stage around BINARY, offline, and runs it as docs/installation.md says: without
# rights, with a root that cannot be written to, stopped and started again on its volume.
#
#   packaging/container-check.sh BINARY
#
# What stands in for the distroless base are the C library and the CA certificates of this machine. Needs
# root, buildah, podman and crun from Debian, and the right to mount cgroup2. The containers have no
# network but their own loopback; images and containers are in a temporary folder, and gone in the end.
set -euo pipefail

if [[ $# -ne 1 || ! -x $1 ]]; then
  echo "usage: ${0##*/} BINARY" >&2
  exit 2
fi
for program in buildah podman crun unshare; do
  command -v "$program" >/dev/null || { echo "$program is missing" >&2; exit 1; }
done
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
binary=$(realpath -- "$1")
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
cat >"$work/storage.conf" <<CONF
[storage]
driver = "vfs"
runroot = "$work/run"
graphroot = "$work/graph"
CONF
export CONTAINERS_STORAGE_CONF=$work/storage.conf

echo "== image"
mkdir -p "$work/context/base/etc/ssl/certs" "$work/context/base/tmp" "$work/context/out/usr/bin"
for library in $(ldd "$binary" | grep -o '/[^ ]*'); do
  install -D -- "$(realpath -- "$library")" "$work/context/base$library"
done
cp -- /etc/ssl/certs/ca-certificates.crt "$work/context/base/etc/ssl/certs/"
strip -o "$work/context/out/usr/bin/opsramp-exporter" "$binary"
install -d -m 0700 "$work/context/out/var/lib/opsramp-exporter"
install -D -m 0644 -t "$work/context/out/usr/share/doc/opsramp-exporter" \
  "$here/../LICENSE" "$here/third-party-licenses.txt"
printf 'FROM scratch\nCOPY base/ /\n' >"$work/base"
# The last stage as it is, but for where it copies from.
sed -n '/^FROM /h; /^FROM /!H; ${x; s/ --from=build//g; p}' "$here/../Dockerfile" >"$work/stage"
base=$(sed -n 's/^FROM //p' "$work/stage")
buildah build --isolation chroot --quiet --file "$work/base" --tag "$base" "$work/context" >/dev/null
# The form of Docker's images: the other one has no HEALTHCHECK.
buildah build --isolation chroot --quiet --pull-never --format docker --file "$work/stage" --tag opsramp-exporter "$work/context" >/dev/null

mkdir "$work/config"
echo demo-secret >"$work/config/secret"
cat >"$work/config/config.yml" <<'CONFIG'
accounts:
  - url: http://127.0.0.1:10837
    client_id: demo-key
    client_secret_file: /etc/opsramp-exporter/secret
    tenants: [client_1]
searches:
  - { name: open, interval: 1s }
web: { listen_addresses: [":18080"] }
CONFIG
chown -R 65532:65532 "$work/config"
chmod 0400 "$work/config/secret"

cat >"$work/inside.sh" <<'INSIDE'
set -euo pipefail
mount --make-rprivate /
if mountpoint -q /sys/fs/cgroup; then umount -R /sys/fs/cgroup; fi
mount -t cgroup2 none /sys/fs/cgroup
# podman wants limits higher than those that one may have without CAP_SYS_RESOURCE.
readonly limits=(--ulimit "nofile=$(ulimit -n):$(ulimit -n)" --ulimit nproc=1024:1024)
# What docs/installation.md says, and what a machine without systemd asks for.
readonly options=(--cgroups=disabled --log-driver k8s-file "${limits[@]}" --read-only --read-only-tmpfs=false
  --cap-drop ALL --security-opt no-new-privileges)
# First the one that has its network from the other.
end() {
  for name in exporter demo; do podman rm --force --ignore --time 1 "$name" >/dev/null 2>>"$work/podman.log" || true; done
}
trap end EXIT
quietly() { "$@" 2>>"$work/podman.log" || { cat "$work/podman.log" >&2; return 1; }; }
fail() {
  echo "$1" >&2
  podman ps --all >&2
  for name in demo exporter; do podman logs "$name" 2>&1 >/dev/null | tail -n 5 >&2; done
  exit 1
}
# Waits until a container's HEALTHCHECK, as it is in the image, says that it works.
healthy() {
  local tries
  for ((tries = 0; tries < 100; tries++)); do
    ! podman healthcheck run "$1" >/dev/null 2>&1 || return 0
    sleep 0.2
  done
  fail "$1 is not healthy"
}
lines() { podman logs exporter 2>/dev/null | grep -c '^{' || true; }
# Waits until there are more lines than so many.
more_than() {
  local tries
  for ((tries = 0; tries < 300; tries++)); do
    [[ $(lines) -le $1 ]] || return 0
    sleep 0.2
  done
  fail "there are no more alert lines than $1"
}

echo "== demo"
quietly podman run --detach --name demo --network none "${options[@]}" --tmpfs /tmp:mode=1777 opsramp-exporter demo >/dev/null
healthy demo

echo "== daemon"
quietly podman run --detach --name exporter --network container:demo "${options[@]}" \
  --volume state:/var/lib/opsramp-exporter --volume "$work/config:/etc/opsramp-exporter:ro" \
  --env OPSRAMP_EXPORTER_CONFIG_FILE=/etc/opsramp-exporter/config.yml opsramp-exporter >/dev/null
healthy exporter
more_than 10
pid=$(podman inspect --format '{{.State.Pid}}' exporter)
for expected in "Uid:	65532	65532" "Gid:	65532	65532" "CapEff:	0000000000000000" "NoNewPrivs:	1" "Seccomp:	2"; do
  grep -q "^$expected" "/proc/$pid/status" || fail "it does not have $expected"
done
# Its state is the only thing that it can write to.
written=$(awk '$4 ~ /^rw/ && $3 !~ /^(proc|sysfs|devpts|mqueue|tmpfs|cgroup2?)$/ { print $2 }' "/proc/$pid/mounts" |
  grep -v '^/\(dev\|proc\|sys\|etc/host\|etc/resolv\|run/\.\?container\)' | xargs)
[[ $written == /var/lib/opsramp-exporter ]] || fail "it can write to: $written"
for text in LICENSE third-party-licenses.txt; do
  [[ -s /proc/$pid/root/usr/share/doc/opsramp-exporter/$text ]] || fail "the image has no $text"
done

echo "== stopped and started again"
quietly podman stop --time 20 exporter >/dev/null
[[ $(podman inspect --format '{{.State.ExitCode}}' exporter) == 0 ]] || fail "it did not stop with status 0"
before=$(lines)
quietly podman start exporter >/dev/null
healthy exporter
more_than "$before"
doubled=$(podman logs exporter 2>/dev/null | grep -o '"event_id":"[^"]*"' | sort | uniq --repeated)
[[ -z $doubled ]] || fail "it wrote again: $doubled"
INSIDE
export work
timeout 180 unshare --mount bash "$work/inside.sh"
