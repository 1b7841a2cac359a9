#!/usr/bin/env bash
# Measures the whole agent as the kubelet sees its device plugin, on the scripted driver of test/fakenvml:
# time from exec to the first device list, answers to Allocate and GetPreferredAllocation, the way of an XID
# to the kubelet, also while another GPU hangs, idle CPU and memory. A stand-in kubelet is on the other side.
#
#   bench/plugin.sh                                    8 GPUs
#   GPUS=16 CALLS=20 bench/plugin.sh                   16 GPUs, 20 calls of each kind
#   PEER=/path/to/nvidia-device-plugin bench/plugin.sh the same of NVIDIA's plugin, in the same run
#
# NVIDIA's plugin has fixed folders, so it needs root: it runs in a mount namespace with folders of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
gpus=${GPUS:-8}
work=$(mktemp -d "${TMPDIR:-/tmp}/bench-plugin.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/kubelet"
go build -trimpath -tags grpcnotrace -ldflags '-s -w' -o "$work/gpu-agent" ./cmd/gpu-agent
go build -o "$work/bench" ./bench/plugin
test/fakenvml/build.sh "$work/libnvidia-ml.so.1"
cat >"$work/config.yaml" <<EOF
apiVersion: gpu-agent.dev/v1alpha1
kind: Config
nodeName: bench
nvml: {library: $work/libnvidia-ml.so.1}
health: {stateDir: $work/health}
devicePlugin: {kubeletDir: $work/kubelet}
http: {listen: "127.0.0.1:0", socket: $work/agent.sock}
labels: {sink: file, file: $work/labels}
cache: {root: $work/cache}
EOF
echo "gpu-agent, everything on, $gpus GPUs"
"$work/bench" -dir "$work/kubelet" -state "$work/state" -gpus "$gpus" -log "$work/log" -rounds "${ROUNDS:-5}" -calls "${CALLS:-1000}" \
	"$work/gpu-agent" run --config "$work/config.yaml" || { tail -n 5 "$work/log" >&2; exit 1; }

[ -n "${PEER:-}" ] || exit 0
echo "NVIDIA's device plugin, $gpus GPUs"
# shellcheck disable=SC2016 # expanded inside
work="$work" gpus="$gpus" PEER="$PEER" unshare --mount bash -euc '
	mkdir -p /var/lib/kubelet && mount -t tmpfs tmpfs /var/lib/kubelet && mkdir /var/lib/kubelet/device-plugins
	LD_LIBRARY_PATH=$work "$work/bench" -state "$work/state" -gpus "$gpus" -log "$work/peer.log" -rounds "${ROUNDS:-5}" -calls "${CALLS:-1000}" \
		"$PEER" --device-discovery-strategy=nvml' || tail -n 5 "$work/peer.log" >&2
