# What the cluster is made of: the folders it covers, its keys, its files, its daemons.
# Sourced by cluster.sh, whose dir, bin, node, node_ip, service_ip and cgroup it uses.
# shellcheck shell=bash disable=SC2154,SC2034

containerd_socket=/run/containerd/containerd.sock
state_folders=(/var/lib/kubelet /var/lib/containerd /var/lib/gpu-agent /var/log/pods /var/log/containers /etc/cni/net.d /etc/cdi)
daemons=(etcd containerd s3 kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)

# Keys of the S3 server: it lives inside the cluster's own network, so they guard nothing.
s3_access=gpu-agent s3_secret=gpu-agent-secret

certificate() { # NAME SUBJECT [ALTERNATIVE_NAMES]
	local at=$dir/pki/$1
	openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$at.key" -subj "$2" -out "$at.csr"
	openssl x509 -req -in "$at.csr" -CA "$dir/pki/ca.crt" -CAkey "$dir/pki/ca.key" -CAcreateserial -days 30 \
		-out "$at.crt" -extfile <(echo "extendedKeyUsage=clientAuth,serverAuth${3:+$'\n'subjectAltName=$3}")
}

kubeconfig() { # NAME: uses the certificate of that name
	cat >"$dir/$1.kubeconfig" <<-END
		apiVersion: v1
		kind: Config
		clusters: [{name: e2e, cluster: {server: "https://$node_ip:6443", certificate-authority: $dir/pki/ca.crt}}]
		users: [{name: user, user: {client-certificate: $dir/pki/$1.crt, client-key: $dir/pki/$1.key}}]
		contexts: [{name: e2e, context: {cluster: e2e, user: user}}]
		current-context: e2e
	END
}

write_pki() {
	mkdir -p "$dir/pki"
	{
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$dir/pki/ca.key" \
			-subj /CN=gpu-agent-e2e -days 30 -out "$dir/pki/ca.crt"
		openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$dir/pki/service-account.key"
		openssl pkey -in "$dir/pki/service-account.key" -pubout -out "$dir/pki/service-account.pub"
		certificate kube-apiserver /CN=kube-apiserver \
			"IP:127.0.0.1,IP:$node_ip,IP:$service_ip,DNS:localhost,DNS:kubernetes.default.svc"
		certificate apiserver-kubelet /O=system:masters/CN=apiserver-kubelet
		certificate kubelet-serving "/CN=$node" "IP:$node_ip,DNS:$node"
		certificate admin /O=system:masters/CN=admin
		certificate kube-controller-manager /CN=system:kube-controller-manager
		certificate kube-scheduler /CN=system:kube-scheduler
		certificate kube-proxy /CN=system:kube-proxy
		certificate kubelet "/O=system:nodes/CN=system:node:$node"
	} 2>"$dir/log/openssl.log" || fail "keys: see $dir/log/openssl.log"
	local name
	for name in admin kube-controller-manager kube-scheduler kube-proxy kubelet; do kubeconfig "$name"; done
}

write_config() {
	mkdir -p "$dir"/state/etc/cni/net.d "$dir"/cni
	ln -s "$bin"/{bridge,host-local,loopback} "$dir/cni/"
	echo "nameserver 127.0.0.1" >"$dir/resolv.conf"

	cat >"$dir/state/etc/cni/net.d/10-bridge.conflist" <<-END
		{"cniVersion": "1.0.0", "name": "bridge", "plugins": [{
		  "type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
		  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.86.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
		           "dataDir": "/run/cni-ipam"}}]}
	END
	cat >"$dir/containerd.toml" <<-END
		version = 3
		root = "/var/lib/containerd"
		state = "/run/containerd"
		oom_score = 0
		[grpc]
		  address = "$containerd_socket"
		[plugins.'io.containerd.cri.v1.images'.pinned_images]
		  sandbox = "docker.io/library/pause:e2e"
		[plugins.'io.containerd.cri.v1.runtime']
		  enable_cdi = true
		  cdi_spec_dirs = ["/etc/cdi", "/run/cdi"]
		  # Without CAP_SYS_RESOURCE a container cannot ask for less than its parent's score.
		  restrict_oom_score_adj = true
		[plugins.'io.containerd.cri.v1.runtime'.cni]
		  bin_dirs = ["$dir/cni"]
		  conf_dir = "/etc/cni/net.d"
		[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
		  runtime_type = "io.containerd.runc.v2"
		[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
		  BinaryName = "$(command -v runc)"
		  SystemdCgroup = false
	END
	cat >"$dir/kubelet.yaml" <<-END
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $dir/pki/ca.crt}}
		authorization: {mode: Webhook}
		tlsCertFile: $dir/pki/kubelet-serving.crt
		tlsPrivateKeyFile: $dir/pki/kubelet-serving.key
		containerRuntimeEndpoint: unix://$containerd_socket
		cgroupDriver: cgroupfs
		cgroupRoot: $cgroup
		failCgroupV1: false
		failSwapOn: false
		resolvConf: $dir/resolv.conf
		volumePluginDir: $dir/volume-plugins
		makeIPTablesUtilChains: false
		nodeStatusUpdateFrequency: 2s
		oomScoreAdj: 0
		maxOpenFiles: $(ulimit -Hn)
		# The images exist nowhere else, so they must outlive a full disk.
		imageGCHighThresholdPercent: 100
		imageGCLowThresholdPercent: 99
		evictionHard: {memory.available: 50Mi, nodefs.available: 200Mi, imagefs.available: 200Mi}
	END
	cat >"$dir/kube-proxy.yaml" <<-END
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		mode: nftables
		hostnameOverride: $node
		clusterCIDR: 10.86.0.0/24
		clientConnection: {kubeconfig: $dir/kube-proxy.kubeconfig}
		conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
		oomScoreAdj: 0
	END
}

daemon() { # NAME: its command line, each word ended by a zero byte
	local words=()
	case $1 in
	etcd) words=(
		"$bin/etcd" --data-dir "$dir/etcd" --unsafe-no-fsync --listen-peer-urls http://127.0.0.1:2380
		--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379
	) ;;
	containerd) words=(env "PATH=$bin:$PATH" "$bin/containerd" --config "$dir/containerd.toml") ;;
	s3) words=(
		"$bin/versitygw" --access "$s3_access" --secret "$s3_secret" --port "$node_ip:7070" posix "$dir/s3"
	) ;;
	kube-apiserver) words=(
		"$bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --advertise-address="$node_ip"
		--service-cluster-ip-range=10.96.0.0/16 --authorization-mode=Node,RBAC
		--enable-admission-plugins=NodeRestriction --allow-privileged --client-ca-file="$dir/pki/ca.crt"
		--tls-cert-file="$dir/pki/kube-apiserver.crt" --tls-private-key-file="$dir/pki/kube-apiserver.key"
		--service-account-issuer=https://kubernetes.default.svc
		--service-account-key-file="$dir/pki/service-account.pub"
		--service-account-signing-key-file="$dir/pki/service-account.key"
		--kubelet-certificate-authority="$dir/pki/ca.crt"
		--kubelet-client-certificate="$dir/pki/apiserver-kubelet.crt"
		--kubelet-client-key="$dir/pki/apiserver-kubelet.key" --kubelet-preferred-address-types=InternalIP
	) ;;
	kube-controller-manager) words=(
		"$bin/kube-controller-manager" --kubeconfig="$dir/kube-controller-manager.kubeconfig"
		--use-service-account-credentials --leader-elect=false --root-ca-file="$dir/pki/ca.crt"
		--service-account-private-key-file="$dir/pki/service-account.key"
	) ;;
	kube-scheduler) words=("$bin/kube-scheduler" --kubeconfig="$dir/kube-scheduler.kubeconfig" --leader-elect=false) ;;
	kubelet) words=(
		"$bin/kubelet" --config="$dir/kubelet.yaml" --kubeconfig="$dir/kubelet.kubeconfig"
		--hostname-override="$node" --node-ip="$node_ip"
	) ;;
	kube-proxy) words=("$bin/kube-proxy" --config="$dir/kube-proxy.yaml") ;;
	esac
	printf '%s\0' "${words[@]}"
}
