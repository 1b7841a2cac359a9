package exporter

// agentFamilies are about the agent itself, in every schema.
func agentFamilies() []family[*node] {
	return []family[*node]{
		{name: "gpu_agent_build_info", kind: gauge, unit: "1", labels: []string{"version"}, help: "Always 1: the agent's version.",
			read: func(n *node, to emit) { to(1, n.version) }},
		{name: "gpu_agent_driver_loaded", kind: gauge, unit: "0 or 1", help: "1 if the NVIDIA driver answers.",
			read: func(n *node, to emit) {
				if n.snapshot != nil {
					to(oneIf(n.snapshot.Driver.Loaded))
				}
			}},
		{name: "gpu_agent_simulated", kind: gauge, unit: "0 or 1", help: "1 if no driver was asked and every GPU is made up.",
			read: func(n *node, to emit) {
				if n.snapshot != nil {
					to(oneIf(n.snapshot.Simulated))
				}
			}},
		{name: "gpu_agent_last_snapshot_timestamp_seconds", kind: gauge, unit: "seconds", help: "Unix time of the newest view of the node's GPUs.",
			read: func(n *node, to emit) {
				if n.snapshot != nil {
					to(unixSeconds(n.snapshot.Time))
				}
			}},
		{name: "gpu_agent_unidentified_gpus", kind: gauge, unit: "1", help: "GPUs that the driver counts and that have never said who they are: they have no series of their own.",
			read: func(n *node, to emit) {
				if n.snapshot != nil && n.snapshot.Driver.Loaded {
					to(float64(len(n.snapshot.Unidentified)))
				}
			}},
		{name: "gpu_agent_health_state_error", kind: gauge, unit: "0 or 1", help: "1 while the health of the GPUs cannot be kept across a restart, or what was kept could not be read.",
			read: func(n *node, to emit) {
				if n.snapshot != nil {
					to(oneIf(n.snapshot.StateError != ""))
				}
			}},
		{name: "gpu_agent_task_up", kind: gauge, unit: "0 or 1", labels: []string{"task"}, help: "1 if the agent's task runs, 0 while it waits to be started again.",
			read: func(n *node, to emit) {
				for task, up := range n.tasks {
					to(oneIf(up), task)
				}
			}},
		{name: "gpu_agent_podresources_up", kind: gauge, unit: "0 or 1", help: "1 if the kubelet's last answer on who holds which GPU came.",
			read: func(n *node, to emit) {
				if n.podResources != nil {
					to(oneIf(*n.podResources))
				}
			}},
		{name: "gpu_agent_plugin_registered", kind: gauge, unit: "0 or 1", labels: []string{"resource"}, help: "1 if the kubelet listens to the device plugin.",
			read: resources(func(r ResourceStatus, to emit) { to(oneIf(r.Registered), r.Resource) })},
		{name: "gpu_agent_devices", kind: gauge, unit: "1", labels: []string{"resource", "health"}, help: "Devices that the kubelet is offered, healthy and unhealthy.",
			read: resources(func(r ResourceStatus, to emit) {
				to(float64(r.Healthy), r.Resource, "healthy")
				to(float64(r.Devices-r.Healthy), r.Resource, "unhealthy")
			})},
		{name: "gpu_agent_allocations_total", kind: counter, unit: "1", help: "Containers that were given devices since the agent started.",
			read: func(n *node, to emit) {
				if n.plugin != nil {
					to(float64(n.plugin.Allocations))
				}
			}},
		{name: "gpu_agent_models_mounts_total", kind: counter, unit: "1", help: "Containers that were given the cache's folder of models with their devices since the agent started (devicePlugin.injectModelsMount).",
			read: func(n *node, to emit) {
				if n.plugin != nil {
					to(float64(n.plugin.ModelsMounts))
				}
			}},
	}
}

func resources(of func(ResourceStatus, emit)) read[*node] {
	return func(n *node, to emit) {
		if n.plugin == nil {
			return
		}
		for _, r := range n.plugin.Resources {
			of(r, to)
		}
	}
}
