#!/usr/bin/env bash
# Builds what a release consists of: the program, its packages, licences, its bill of materials, checksums.
#
#   packaging/release.sh FOLDER
#
# The program is the same to the byte for everybody who builds the same revision for the same target with
# the same Rust, C compiler and C library, whatever the folders are called: compare FOLDER/SHA256SUMS.
set -euo pipefail

if [[ $# -ne 1 ]]; then
  echo "usage: ${0##*/} FOLDER" >&2
  exit 2
fi
mkdir -p -- "$1"
out=$(realpath -- "$1")
# What an earlier version has left would be taken for this one's, and get its checksums.
[[ -z $(ls -A -- "$out") ]] || { echo "$1 is not empty" >&2; exit 1; }
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/target/tools/bin:$PATH"
cargo install --quiet --locked --debug --root target/tools \
    cargo-deb@3.8.0 cargo-generate-rpm@0.21.1

# Panics tell where they come from: that shall not be a folder of whoever has built it. Names of folders
# may have blanks, at which Cargo would divide RUSTFLAGS.
CARGO_ENCODED_RUSTFLAGS=$(printf '%s\x1f%s' "--remap-path-prefix=$PWD=/src" \
    "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo")
OPSRAMP_EXPORTER_REVISION=$(git rev-parse --short=12 HEAD)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export CARGO_ENCODED_RUSTFLAGS OPSRAMP_EXPORTER_REVISION SOURCE_DATE_EPOCH
[[ -z $(git status --porcelain) ]] || { echo "there are changes that are not committed" >&2; exit 1; }

cargo build --release --locked
cp target/release/opsramp-exporter LICENSE packaging/third-party-licenses.txt "$out/"
cargo deb --locked --no-build --no-strip --output "$out/"
cargo generate-rpm --payload-compress gzip --output "$out/"
packaging/sbom.sh "$out/opsramp-exporter.cdx.json"
cd -- "$out"
sha256sum -- opsramp-exporter LICENSE third-party-licenses.txt *.deb *.rpm opsramp-exporter.cdx.json >SHA256SUMS
