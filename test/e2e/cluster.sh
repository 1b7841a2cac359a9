#!/bin/bash
# A real Kubernetes of one node, node-1, in namespaces of its own on this machine. README.md says how.
set -euo pipefail
shopt -s nullglob
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${GPU_AGENT_E2E_DIR:-${TMPDIR:-/tmp}/gpu-agent-e2e}
node=node-1 node_ip=10.85.0.10 service_ip=10.96.0.1
export PATH=$PATH:/usr/sbin:/sbin

usage() {
	cat >&2 <<-END
		usage: cluster.sh [-dir DIR] COMMAND
		  up               build what is missing, start the cluster, wait for the node
		  down             end every process of it, remove its cgroups and state; DIR/log stays
		  status           what runs, and the node
		  kubectl ARGS...  kubectl as cluster admin
		  exec CMD...      run a command inside the cluster's namespaces
		  import TAR...    load images into containerd
		  restart NAME     stop one daemon and start it again (kubelet, containerd, ...)
		DIR: state folder, default $dir; not below /run.
	END
	exit 2
}
fail() { echo "cluster.sh: $*" >&2; exit 1; }

# shellcheck source=config.sh
source "$here/config.sh"

# The first process of the namespaces, as seen from outside; empty when the cluster is down.
init_pid() {
	local pid
	pid=$(cat "$dir/init.pid" 2>/dev/null) || return 0
	[[ $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") == *"cluster.sh -dir $dir init "* ]] && echo "$pid"
	return 0
}

inside() {
	local pid
	pid=$(init_pid)
	[[ $pid ]] || fail "the cluster is down: cluster.sh -dir $dir up"
	nsenter --target "$pid" --mount --pid --net --uts --ipc -- "$@"
}

until_true() { # SECONDS WHAT COMMAND...
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || fail "$what: not within its time; logs are in $dir/log"
		sleep 0.2
	done
}

# Runs as process 1 of new namespaces: mounts and addresses, then it reaps what the daemons leave.
init() {
	mount --make-rshared /
	mount -t tmpfs -o mode=755 tmpfs /run
	# Mount points are made in overlays, so that no empty folder appears on the machine.
	local at to
	for at in /etc /var/lib /var/log; do
		mkdir -p "$dir/over$at" "$dir/work$at"
		mount -t overlay -o "lowerdir=$at,upperdir=$dir/over$at,workdir=$dir/work$at" overlay "$at"
	done
	for to in "${state_folders[@]}"; do
		mkdir -p "$dir/state$to" "$to"
		mount --bind "$dir/state$to" "$to"
	done
	# The kubelet sets these for the whole machine: it finds them set, and writes to files of ours.
	local setting
	for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
		kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
		mkdir -p "$dir/sys/$(dirname "${setting%=*}")"
		echo "${setting#*=}" >"$dir/sys/${setting%=*}"
		mount --bind "$dir/sys/${setting%=*}" "/proc/sys/${setting%=*}"
	done
	hostname "$node"
	ip link set lo up
	ip link add node0 type veth peer name node1 # one end is the node's address, the other its "wire"
	ip addr add "$node_ip/24" dev node0
	ip link set node0 up
	ip link set node1 up
	ip route add default via 10.85.0.1 dev node0
	echo 1 >/proc/sys/net/ipv4/ip_forward
	trap 'exit 0' TERM
	: >"$dir/ready"
	while :; do sleep infinity & wait $! || true; done
}

# cgroup v1 has a folder for each hierarchy, v2 one, and a machine with both has runc use all of them.
cgroup_mounts() { awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/self/mounts; }

make_cgroups() {
	local at file
	for at in $(cgroup_mounts); do
		mkdir -p "$at$cgroup"
		if [[ -f $at/cgroup.controllers ]]; then
			for file in $(cat "$at/cgroup.controllers"); do echo "+$file" >"$at/cgroup.subtree_control" || true; done
		fi
		for file in cpuset.cpus cpuset.mems; do
			[[ -f $at/$file ]] && cat "$at/$file" >"$at$cgroup/$file"
		done
	done
	return 0
}

remove_cgroups() {
	local at
	for at in $(cgroup_mounts); do
		[[ -d $at$cgroup ]] && find "$at$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null
		[[ ! -d $at$cgroup ]] || return 1
	done
	return 0
}

start() { # NAME
	local command
	mapfile -d '' -t command < <(daemon "$1")
	# shellcheck disable=SC2016 # expanded inside
	inside bash -c 'log=$1 pid=$2; shift 2; setsid "$@" </dev/null >>"$log" 2>&1 & echo $! >"$pid"' \
		start "$dir/log/$1.log" "$dir/$1.pid" "${command[@]}"
}

running() { inside kill -0 "$(cat "$dir/$1.pid")" 2>/dev/null; }
stopped() { ! running "$1"; }
ready() { [[ -e $dir/ready ]]; }

kubectl() { inside "$bin/kubectl" --kubeconfig "$dir/admin.kubeconfig" "$@"; }
node_ready() { kubectl wait --for=condition=Ready "node/$node" --timeout=1s; }

import() {
	local tar
	for tar; do
		inside "$bin/ctr" --address "$containerd_socket" -n k8s.io images import --local "$(realpath "$tar")" \
			>>"$dir/log/import.log" 2>&1 || fail "import $tar: see $dir/log/import.log"
	done
}

up() {
	[[ $(init_pid) ]] && { echo "up already: $dir"; return; }
	[[ $dir != /run/* ]] || fail "-dir $dir: /run is covered by the cluster's own; name another folder"
	local need missing=()
	for need in unshare nsenter ip nft runc openssl busybox; do
		command -v "$need" >/dev/null || missing+=("$need")
	done
	((${#missing[@]} == 0)) || fail "missing ${missing[*]}: apt-get install runc nftables busybox-static openssl iproute2 util-linux"
	bin=$("$here/build.sh")
	remove_cgroups || fail "cgroup $cgroup is in use by another cluster"
	rm -rf --one-file-system "${dir:?}"
	mkdir -p "$dir"/{log,s3,images}
	ln -s "$bin" "$dir/bin"
	write_pki
	write_config
	make_cgroups
	for need in pause busybox; do
		(cd "$here/../.." && go run ./test/image -o "$dir/images/$need.tar" -name "docker.io/library/$need:e2e" \
			-entrypoint "/bin/busybox sleep 1000000000" "$(command -v busybox)"={/bin/busybox,/bin/sh})
	done

	setsid unshare --mount --pid --net --uts --ipc --fork --kill-child --mount-proc --propagation private \
		"$here/cluster.sh" -dir "$dir" init "$cgroup" </dev/null >"$dir/log/init.log" 2>&1 &
	local outer=$!
	until_true 10 "namespaces" ready
	tr -d ' ' <"/proc/$outer/task/$outer/children" >"$dir/init.pid"

	start etcd
	start containerd
	start s3
	start kube-apiserver
	until_true 30 containerd inside "$bin/ctr" --address "$containerd_socket" version
	import "$dir"/images/*.tar
	until_true 60 kube-apiserver kubectl get --raw /readyz
	start kube-controller-manager
	start kube-scheduler
	start kubelet
	start kube-proxy
	until_true 60 "node ready" node_ready
	until_true 60 "default service account" kubectl get serviceaccount default
	echo "up: $here/cluster.sh -dir $dir kubectl get pods -A"
}

down() {
	local pid
	pid=$(init_pid)
	if [[ $pid ]]; then
		kill -TERM "$pid"
		until_true 20 "end of the first process" gone "$pid"
	fi
	until_true 20 "removal of cgroup $cgroup" remove_cgroups
	for pid in "$dir"/*; do
		[[ $pid == "$dir/log" ]] || rm -rf --one-file-system "$pid"
	done
}
gone() { [[ ! -e /proc/$1 ]]; }

status() {
	[[ $(init_pid) ]] || { echo "down: $dir"; exit 1; }
	local name
	for name in "${daemons[@]}"; do
		printf '%-24s %s\n' "$name" "$(running "$name" && echo running || echo "stopped: $dir/log/$name.log")"
	done
	kubectl get nodes,pods --all-namespaces -o wide
}

restart() { # NAME
	[[ " ${daemons[*]} " == *" $1 "* ]] || fail "no daemon named $1: want one of ${daemons[*]}"
	inside kill -TERM "$(cat "$dir/$1.pid")"
	until_true 30 "stop of $1" stopped "$1"
	start "$1"
}

if [[ ${1:-} == -dir ]]; then
	(($# >= 2)) && [[ $2 ]] || usage
	dir=$2
	shift 2
fi
[[ $dir == /* ]] || dir=$PWD/$dir
cgroup=/gpu-agent-e2e-$(sha256sum <<<"$dir" | cut -c1-8)
bin=$dir/bin
command=${1:-}
shift || usage
((EUID == 0)) || fail "needs root: it makes namespaces, mounts and cgroups"
case $command in
up | down | status) (($# == 0)) || usage; "$command" ;;
kubectl) kubectl "$@" ;;
exec) inside "$@" ;;
import) import "$@" ;;
restart) (($# == 1)) || usage; restart "$1" ;;
init) init ;;
*) usage ;;
esac
