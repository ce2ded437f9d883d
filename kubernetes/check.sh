#!/usr/bin/env bash
# Checks the manifests: against the schemas of Kubernetes, and whether they fit each other and the program.
#
#   kubernetes/check.sh BINARY
#
# Needs kubectl (for its kustomize; no cluster), and a python3 that has kubernetes-validate and PyYAML.
set -euo pipefail

if [[ $# -ne 1 || ! -x $1 ]]; then
  echo "usage: ${0##*/} BINARY" >&2
  exit 2
fi
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
kubectl kustomize "$here" >"$work/manifests.yaml"
python3 "$here/check.py" "$work/manifests.yaml" "$here" "$work/config.yml"
"$(realpath -- "$1")" --config.file="$work/config.yml" --config.check
