#!/usr/bin/env bash
# Builds the .deb and the .rpm around BINARY and checks them: what they hold, what lintian says, that
# the .deb can be installed, started, removed and purged under a real systemd, and that the .rpm leaves
# nothing of its own behind.
#
#   packaging/check.sh BINARY TREE
#
# TREE is a folder with a Debian, see systemd/nspawn.sh. Needs root, cargo-deb, cargo-generate-rpm,
# bash, zsh and fish for their completions, and from Debian: lintian, mandoc, rpm, cpio, and what
# systemd/nspawn.sh needs.
set -euo pipefail

if [[ $# -ne 2 || ! -x $1 ]]; then
  echo "usage: ${0##*/} BINARY TREE" >&2
  exit 2
fi
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
binary=$(realpath -- "$1")
tree=$(realpath -m -- "$2")
for program in cargo-deb cargo-generate-rpm lintian mandoc rpm rpm2cpio cpio zsh fish; do
  command -v "$program" >/dev/null || { echo "$program is missing" >&2; exit 1; }
done
. "$here/../tests/support/processes.sh"
cd -- "$here/.."

echo "== manual page and completions"
# It knows .TH without a date, and groff's own definitions, as warnings only.
mandoc -T lint -W error packaging/opsramp-exporter.1
bash -n packaging/completions/opsramp-exporter.bash
zsh -n packaging/completions/_opsramp-exporter
fish --no-execute packaging/completions/opsramp-exporter.fish
completed=$(bash -c '
  source packaging/completions/opsramp-exporter.bash
  COMP_WORDS=(opsramp-exporter demo --simulator.l) COMP_CWORD=2
  function=$(complete -p opsramp-exporter | grep -oP "(?<=-F )\S+")
  "$function" opsramp-exporter --simulator.l demo
  echo "${COMPREPLY[*]}"')
[[ $completed == --simulator.listen-address ]] || { echo "bash completes to: $completed" >&2; exit 1; }
# A command, a command behind flags, a command's flag, and what a flag is for.
completed=$(fish --no-config -c '
  source packaging/completions/opsramp-exporter.fish
  for words in "ch" "--config.file check --log.level=debug hea" "demo --simulator.l" "search --output js"
    complete -C "opsramp-exporter $words" | string split -f 1 \t
  end' | xargs)
[[ $completed == "check healthcheck --simulator.listen-address json jsonl" ]] || {
  echo "fish completes to: $completed" >&2
  exit 1
}

echo "== packages"
# The tools look for the program where a release build puts it.
mkdir -p "$work/target/release"
strip -o "$work/target/release/opsramp-exporter" "$binary"
CARGO_TARGET_DIR=$work/target cargo deb --quiet --locked --no-build --no-strip --fast --output "$work/opsramp-exporter.deb" >/dev/null
cargo generate-rpm --target-dir "$work/target" --payload-compress gzip --output "$work/opsramp-exporter.rpm"

# What both must hold, with its rights. zsh's folder is another one on each.
cat >"$work/expected" <<'FILES'
-rw-r--r-- /etc/logrotate.d/opsramp-exporter
-rw------- /etc/opsramp-exporter/client-secret
-rw-r--r-- /etc/opsramp-exporter/config.yml
-rwxr-xr-x /usr/bin/opsramp-exporter
-rw-r--r-- /usr/lib/systemd/system/opsramp-exporter.service
-rw-r--r-- /usr/lib/systemd/system/opsramp-exporter.socket
-rw-r--r-- /usr/share/bash-completion/completions/opsramp-exporter
-rw-r--r-- /usr/share/doc/opsramp-exporter/third-party-licenses.txt
-rw-r--r-- /usr/share/fish/vendor_completions.d/opsramp-exporter.fish
-rw-r--r-- /usr/share/man/man1/opsramp-exporter.1
-rw-r--r-- /usr/share/opsramp-exporter/config.schema.json
-rw-r--r-- /usr/share/opsramp-exporter/dashboards/opsramp-exporter.json
-rw-r--r-- /usr/share/opsramp-exporter/rules/opsramp-exporter.rules.yml
-rw-r--r-- /usr/share/opsramp-exporter/systemd/opsramp-exporter.socket.conf
FILES
dpkg-deb --contents "$work/opsramp-exporter.deb" | awk '{ sub(/^\./, "", $6); sub(/\.gz$/, "", $6); print $1, $6 }' >"$work/deb"
rpm -qplv "$work/opsramp-exporter.rpm" 2>/dev/null | awk '{ print $1, $NF }' >"$work/rpm"
for package in deb rpm; do
  if grep -vxFf "$work/$package" "$work/expected"; then
    echo "is missing in the .$package" >&2
    exit 1
  fi
done
readonly configuration='/etc/logrotate.d/opsramp-exporter /etc/opsramp-exporter/client-secret /etc/opsramp-exporter/config.yml'
conffiles=$(dpkg-deb --ctrl-tarfile "$work/opsramp-exporter.deb" | tar -xO ./conffiles | sort | xargs)
config=$(rpm -qpc "$work/opsramp-exporter.rpm" 2>/dev/null | sort | xargs)
[[ $conffiles == "$configuration" && $config == "$configuration" ]] || {
  echo "configuration files are: $conffiles, and: $config" >&2
  exit 1
}
# The changelog is ours, not in Debian's form. The secret is for nobody else to read.
lintian --no-cfg --allow-root --fail-on error,warning \
  --suppress-tags no-changelog,wrong-name-for-upstream-changelog,non-standard-file-perm "$work/opsramp-exporter.deb"

echo "== the program in the .rpm"
mkdir "$work/unpacked"
# rpm2cpio 4.18 exits with 1 though its output is whole; cpio fails if something is missing.
rpm2cpio "$work/opsramp-exporter.rpm" >"$work/opsramp-exporter.cpio" || true
(cd "$work/unpacked" && cpio --quiet -idm <"$work/opsramp-exporter.cpio")
"$work/unpacked/usr/bin/opsramp-exporter" --config.file="$work/unpacked/etc/opsramp-exporter/config.yml" --config.check
rpm -qp --scripts "$work/opsramp-exporter.rpm" 2>/dev/null | sed '/scriptlet/d' | sh -n

echo "== installing the .deb under systemd"
start_demo "$binary"
simulator=$(find_in "$work/demo.log" '^demo: simulator *(http[^ ]*).*')
install -D -m 0644 "$work/opsramp-exporter.deb" "$work/root/opt/opsramp-exporter.deb"
install -D -m 0755 /dev/stdin "$work/root/usr/local/bin/probe" <<PROBE
#!/bin/bash
readonly simulator=$simulator
$(cat "$here/probe.sh")
PROBE
systemd/nspawn.sh "$tree" "$work/root"

echo "== installing and removing the .rpm"
# Its scripts run in that Debian, where no systemd runs. A file of the operator's stays, with its folder.
export tree work
unshare --mount bash -euc '
  mount --make-rprivate /
  mkdir "$work/space"
  mount -t tmpfs tmpfs "$work/space"
  mkdir "$work/space/upper" "$work/space/work" "$work/space/all"
  mount -t overlay overlay -o "lowerdir=$tree,upperdir=$work/space/upper,workdir=$work/space/work" "$work/space/all"
  # It says that it is not meant for Debian.
  run_rpm() { rpm --root "$work/space/all" --nodeps "$@" 2>"$work/rpm.log" || { cat "$work/rpm.log" >&2; return 1; }; }
  found() { (cd "$work/space/all" && find etc usr -path "*opsramp*" | sort | xargs); }
  run_rpm --install "$work/opsramp-exporter.rpm"
  [[ -x $work/space/all/usr/bin/opsramp-exporter ]]
  touch "$work/space/all/etc/opsramp-exporter/web.yml"
  run_rpm --erase opsramp-exporter
  left=$(found)
  [[ $left == "etc/opsramp-exporter etc/opsramp-exporter/web.yml" ]] || { echo "it leaves behind: $left" >&2; exit 1; }
  rm "$work/space/all/etc/opsramp-exporter/web.yml"
  run_rpm --install "$work/opsramp-exporter.rpm"
  run_rpm --erase opsramp-exporter
  left=$(found)
  [[ -z $left ]] || { echo "it leaves behind: $left" >&2; exit 1; }
'
echo "removed"
