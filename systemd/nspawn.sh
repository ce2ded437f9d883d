#!/usr/bin/env bash
# Boots a Debian with a real systemd in systemd-nspawn, runs a program in it, and powers it off.
#
#   systemd/nspawn.sh TREE ROOT
#
# TREE is a folder with a Debian; where there is none, debootstrap makes it (it takes a minute). ROOT
# is laid over it, and holds the program at /usr/local/bin/probe, whose last line must be "all is
# well". The script adds a unit to ROOT that runs the program. The container shares our network. It is
# ephemeral: nothing of it stays. Needs root, systemd-nspawn (systemd-container), debootstrap and the
# right to mount cgroup2.
set -euo pipefail

if [[ $# -ne 2 || ! -x $2/usr/local/bin/probe ]]; then
  echo "usage: ${0##*/} TREE ROOT" >&2
  exit 2
fi
tree=$1
root=$2
for program in systemd-nspawn debootstrap unshare; do
  command -v "$program" >/dev/null || { echo "$program is missing" >&2; exit 1; }
done
if [[ ! -d $tree ]]; then
  mkdir -p -- "$(dirname -- "$tree")"
  rm -rf -- "$tree.part"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,ca-certificates,logrotate,procps \
    bookworm "$tree.part" >"$tree.log" || { tail -n 20 "$tree.log" >&2; exit 1; }
  mv -- "$tree.part" "$tree"
fi

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
mkdir "$work/said"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
cat >"$root/etc/systemd/system/probe.service" <<'UNIT'
[Unit]
After=multi-user.target
SuccessAction=poweroff
FailureAction=poweroff
[Service]
Type=oneshot
ExecStart=/usr/local/bin/probe
StandardOutput=file:/said/out
StandardError=inherit
UNIT
ln -sf ../probe.service "$root/etc/systemd/system/multi-user.target.wants/probe.service"

# In a mount namespace of its own: an overlay for the tree, and cgroup2 alone under /sys/fs/cgroup.
export tree root work
# shellcheck disable=SC2016 # The inner shell expands them.
timeout 300 unshare --mount bash -euc '
  mount --make-rprivate /
  mkdir "$work/space"
  mount -t tmpfs tmpfs "$work/space"
  mkdir "$work/space/upper" "$work/space/work" "$work/space/all"
  cp -a "$root/." "$work/space/upper/"
  mount -t overlay overlay -o "lowerdir=$tree,upperdir=$work/space/upper,workdir=$work/space/work" "$work/space/all"
  if mountpoint -q /sys/fs/cgroup; then umount -R /sys/fs/cgroup; fi
  mount -t cgroup2 none /sys/fs/cgroup
  exec systemd-nspawn --quiet --directory="$work/space/all" --bind="$work/said:/said" \
    --register=no --keep-unit --console=pipe --boot
' </dev/null >"$work/nspawn.log" 2>&1 || cat "$work/nspawn.log" >&2
[[ -e $work/said/out ]] || { echo "the probe did not run" >&2; cat "$work/nspawn.log" >&2; exit 1; }
cat "$work/said/out"
grep -qx 'all is well' "$work/said/out"
