#!/usr/bin/env bash
# Writes the bill of materials, in CycloneDX: packaging/sbom.sh FILE
#
# It names what is built in, with versions, licences and checksums of the sources; no tools, no tests.
set -euo pipefail
out=$(realpath -- "$1")
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/target/tools/bin:$PATH"
cargo install --quiet --locked --debug --root target/tools cargo-cyclonedx@0.5.9

made=opsramp-exporter.cdx.json
trap 'rm -f -- "$made"' EXIT
cargo cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps --override-filename "${made%.json}"
sed "s|file://$PWD|file:///src|g" "$made" >"$out"

crates=$(cargo tree --locked --edges normal --prefix none --format '{p}' | sed 's/ (.*//' | sort -u)
missing=$(comm -23 <(grep -v '^opsramp-exporter ' <<<"$crates") \
    <(jq -r '.components[] | select((.licenses and .hashes)) | "\(.name) v\(.version)"' "$out" | sort -u))
[[ -z $missing ]] || { printf 'not in %s, or without licence or checksum:\n%s\n' "$1" "$missing" >&2; exit 1; }
