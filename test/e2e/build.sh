#!/bin/bash
# Builds the real parts of the one-node cluster into a cache folder outside the tree, keyed by
# everything that decides their content, and prints that folder. A second call builds nothing.
set -euo pipefail
cd "$(dirname "$0")"

# The toolchain of the whole project, whatever the caller runs under: `go test` puts its own first in PATH.
export GOTOOLCHAIN=go$(sed -n "s/^go //p" ../../go.mod)
kubernetes=$(sed -nE 's/^(require)?[[:space:]]*k8s\.io\/kubernetes v([^ ]+).*/\2/p' kubernetes/go.mod)
key=$({ cat kubernetes/go.mod kubernetes/go.sum containerd/go.mod containerd/go.sum \
	versitygw/go.mod versitygw/go.sum toolkit/go.mod toolkit/go.sum build.sh; echo "$GOTOOLCHAIN"; } | sha256sum | cut -c1-12)
out=${GPU_AGENT_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/gpu-agent-e2e}/$kubernetes-$key

# One set of flags everywhere: another -trimpath, CGO or tag would build the shared packages again.
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false
version=k8s.io/component-base/version
ldflags="-s -w -X $version.gitVersion=v$kubernetes -X $version.gitMajor=${kubernetes%%.*}"
ldflags+=" -X $version.gitMinor=$(cut -d. -f2 <<<"$kubernetes") -X $version.gitTreeState=clean"

build() { # MODULE NAME PACKAGE [TAGS]
	[[ -x $out/$2 ]] && return
	echo "building $2" >&2
	mkdir -p "$out"
	(cd "$1" && go build -p 2 -trimpath -tags "${4:-}" -ldflags "$ldflags" -o "$out/$2.new" "$3") >&2
	mv "$out/$2.new" "$out/$2"
}

runtime="no_btrfs no_devmapper no_zfs urfave_cli_no_docs osusergo netgo static_build"
build kubernetes kubelet k8s.io/kubernetes/cmd/kubelet
build containerd containerd github.com/containerd/containerd/v2/cmd/containerd "$runtime"
build containerd ctr github.com/containerd/containerd/v2/cmd/ctr "$runtime"
build containerd containerd-shim-runc-v2 github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 "$runtime no_grpc"
build containerd bridge github.com/containernetworking/plugins/plugins/main/bridge
build containerd host-local github.com/containernetworking/plugins/plugins/ipam/host-local
build containerd loopback github.com/containernetworking/plugins/plugins/main/loopback
build kubernetes kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
build kubernetes kube-controller-manager k8s.io/kubernetes/cmd/kube-controller-manager
build kubernetes kube-scheduler k8s.io/kubernetes/cmd/kube-scheduler
build kubernetes kube-proxy k8s.io/kubernetes/cmd/kube-proxy
build kubernetes kubectl k8s.io/kubernetes/cmd/kubectl
build kubernetes etcd go.etcd.io/etcd/server/v3
build versitygw versitygw github.com/versity/versitygw/cmd/versitygw
CGO_ENABLED=1 build toolkit nvidia-cdi-hook github.com/NVIDIA/nvidia-container-toolkit/cmd/nvidia-cdi-hook
echo "$out"
