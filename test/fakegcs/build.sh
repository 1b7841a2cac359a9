#!/bin/bash
# Builds the Cloud Storage server into a cache folder outside the tree, keyed by what decides its content, and prints
# that folder. A second call builds nothing.
set -euo pipefail
cd "$(dirname "$0")"
export GOTOOLCHAIN=go$(sed -n "s/^go //p" ../../go.mod) CGO_ENABLED=0 GOFLAGS=-buildvcs=false # as test/e2e/build.sh
version=$(sed -nE 's/.*fsouza\/fake-gcs-server (v[^ ]+).*/\1/p' go.mod)
out=${GPU_AGENT_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/gpu-agent-e2e}/fake-gcs-server-$version-$({ cat go.mod go.sum build.sh; echo "$GOTOOLCHAIN"; } | sha256sum | cut -c1-12)
if [[ ! -x $out/fake-gcs-server ]]; then
	echo "building fake-gcs-server" >&2
	mkdir -p "$out"
	go build -p 2 -trimpath -ldflags "-s -w" -o "$out/fake-gcs-server.new" github.com/fsouza/fake-gcs-server >&2
	mv "$out/fake-gcs-server.new" "$out/fake-gcs-server"
fi
echo "$out"
