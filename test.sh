#!/usr/bin/env bash
# Everything that is checked, with what it needs: the one command for tests, on a new machine and in CI.
# A tool that cannot be installed is a failure, never a silent skip.
set -euo pipefail
cd "$(dirname "$0")"

say() { printf '\n== %s\n' "$*"; }

# Installs Debian packages, unless their command is there: command=package …
need() {
    local missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair##*=}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    local sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    say "installing ${missing[*]}"
    # Packages of servers would start them: the tests start their own, on free ports.
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qy --no-install-recommends "${missing[@]}"
}

need prometheus=prometheus promtool=prometheus strace=strace faketime=faketime systemd-analyze=systemd logrotate=logrotate python3=python3
need systemd-nspawn=systemd-container debootstrap=debootstrap lintian=lintian mandoc=mandoc rpm=rpm rpm2cpio=rpm2cpio \
    cpio=cpio zsh=zsh fish=fish chromium=chromium curl=curl kubectl=kubernetes-client buildah=buildah \
    podman=podman crun=crun node=nodejs npm=npm jq=jq
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need no-such-command=postgresql
python3 -c 'import venv, ensurepip' 2>/dev/null || need no-such-command=python3-venv

# The clients that others wrote, and what the checks of dashboards and manifests are written with.
export OPSRAMP_TEST_VENV="$PWD/target/test-venv"
if ! "$OPSRAMP_TEST_VENV/bin/python" -c 'import opsramp, yaml, kubernetes_validate' 2>/dev/null || [ ! -x "$OPSRAMP_TEST_VENV/bin/opcli" ]; then
    say "installing opsrampcli, python-opsramp, PyYAML and kubernetes-validate"
    python3 -m venv "$OPSRAMP_TEST_VENV"
    "$OPSRAMP_TEST_VENV/bin/pip" install -q 'opsrampcli==0.31' 'python-opsramp==3.5' PyYAML 'kubernetes-validate==1.37.0'
fi

# They make the packages. Not optimized: that would take longer than all that they are asked to do.
export PATH="$PWD/target/tools/bin:$PATH"
say "packaging tools"
cargo install --quiet --locked --debug --root target/tools cargo-deb@3.8.0 cargo-generate-rpm@0.21.1
say "tools that look at dependencies"
cargo install --quiet --locked --debug --root target/tools cargo-deny@0.20.2 cargo-machete@0.9.2
cargo fetch --quiet --locked

say "format";       cargo fmt --check
say "lints";        cargo clippy --locked --all-targets -- -D warnings
# Known weaknesses are asked for before a release, docs/releasing.md: their list is on the network.
say "dependencies";  cargo deny --offline check --hide-inclusion-graph bans licenses sources; cargo machete
say "licences of others"; packaging/third_party_licenses.py --check
say "bill of materials"; packaging/sbom.sh target/sbom.cdx.json
say "documentation"; RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --quiet
# Most tests wait more than they work.
say "tests";        RUST_TEST_THREADS=$((3 * $(nproc))) cargo test --locked
say "rules and dashboards"; PATH="$OPSRAMP_TEST_VENV/bin:$PATH" dashboards/check.sh --live target/debug/opsramp-exporter
say "dashboards against Grafana's schema"
(cd dashboards/typecheck && npm ci --silent --no-audit --no-fund && npm run --silent check)
say "page in a browser"; tests/page/check.sh target/debug/opsramp-exporter
say "Kubernetes manifests"; PATH="$OPSRAMP_TEST_VENV/bin:$PATH" kubernetes/check.sh target/debug/opsramp-exporter
say "systemd unit"; systemd/check.sh target/debug/opsramp-exporter
say "units under systemd"; systemd/boot.sh target/debug/opsramp-exporter target/debian-tree
say "packages"; packaging/check.sh target/debug/opsramp-exporter target/debian-tree
say "container"; packaging/container-check.sh target/debug/opsramp-exporter
say "all is well"
