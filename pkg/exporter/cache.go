package exporter

import "github.com/gpu-agent/gpu-agent/pkg/model"

// cacheFamilies are about the model cache, in every schema. Their model label is bounded by what fits
// on the node's disk.
func cacheFamilies() []family[*node] {
	return []family[*node]{
		{name: "model_cache_limit_bytes", kind: gauge, unit: "bytes", help: "Bytes that the cache may take.",
			read: cache(func(inv *model.Inventory, to emit) { to(float64(inv.Limit)) })},
		{name: "model_cache_used_bytes", kind: gauge, unit: "bytes", help: "Bytes on disk, partial files included.",
			read: cache(func(inv *model.Inventory, to emit) { to(float64(inv.Used)) })},
		{name: "model_cache_reserved_bytes", kind: gauge, unit: "bytes", help: "Bytes promised to downloads and not yet written.",
			read: cache(func(inv *model.Inventory, to emit) { to(float64(inv.Reserved)) })},
		{name: "model_cache_problem", kind: gauge, unit: "0 or 1", labels: []string{"reason"}, help: "1 while something keeps the cache from its work: its disk is full, read-only, fails or, of several, is gone, the hub shows a part of a repository, or it is not known which models pods use, or what new ones ask for.",
			read: cache(func(inv *model.Inventory, to emit) {
				on := map[string]bool{"DiskFailed": false, "DiskFull": false, "DiskReadOnly": false, "PodsUnknown": false, "PodsUnseen": false}
				if len(inv.Disks) > 0 {
					on["DiskGone"], on["HubSplit"] = false, false
				}
				for _, p := range inv.Problems {
					on[p.Reason] = true
				}
				for reason, is := range on {
					to(oneIf(is), reason)
				}
			})},
		{name: "model_cache_disk_up", kind: gauge, unit: "0 or 1", labels: []string{"disk"}, help: "1 if the cache of the disk is open. Of cache.root, which goes by root, and cache.disks, where there are several.",
			read: disks(func(d model.Disk, to emit) { to(oneIf(d.Error == ""), d.Name) })},
		{name: "model_cache_disk_limit_bytes", kind: gauge, unit: "bytes", labels: []string{"disk"}, help: "Bytes that the cache may take of the disk.",
			read: disks(func(d model.Disk, to emit) { openDisk(d, to, d.Limit) })},
		{name: "model_cache_disk_used_bytes", kind: gauge, unit: "bytes", labels: []string{"disk"}, help: "Bytes of the cache on the disk, partial files included.",
			read: disks(func(d model.Disk, to emit) { openDisk(d, to, d.Used) })},
		{name: "model_cache_disk_reserved_bytes", kind: gauge, unit: "bytes", labels: []string{"disk"}, help: "Bytes of the disk promised to downloads and not yet written.",
			read: disks(func(d model.Disk, to emit) { openDisk(d, to, d.Reserved) })},
		{name: "model_cache_models", kind: gauge, unit: "1", labels: []string{"state"}, help: "Models by how far they have come.", read: cache(modelsByState)},
		{name: "model_cache_model_ready", kind: gauge, unit: "0 or 1", labels: []string{"model"}, help: "1 if the model is complete, verified and visible to pods.",
			read: models(func(m model.Status, to emit) { to(oneIf(m.State == model.Ready), m.Name) })},
		{name: "model_cache_model_bytes", kind: gauge, unit: "bytes", labels: []string{"model"}, help: "Bytes of the model on disk.",
			read: models(func(m model.Status, to emit) { to(float64(m.Done), m.Name) })},
		{name: "model_cache_model_size_bytes", kind: gauge, unit: "bytes", labels: []string{"model"}, help: "Bytes of the complete model. Absent until its origin has told.",
			read: models(func(m model.Status, to emit) {
				if m.Size > 0 {
					to(float64(m.Size), m.Name)
				}
			})},
		{name: "model_cache_resident_bytes", kind: gauge, unit: "bytes", labels: []string{"model"}, help: "Bytes of the model's current revision that are in the node's page cache, whoever brought them there, as of the last look: every 30 seconds, or less often where much is in memory. Absent unless cache.warm is on.",
			read: models(func(m model.Status, to emit) {
				if m.Resident != nil {
					to(float64(*m.Resident), m.Name)
				}
			})},
		{name: "model_cache_read_ahead_bytes_total", kind: counter, unit: "bytes", help: "Bytes that were read into the page cache ahead of the pods that load them, since the agent started.",
			read: cache(func(inv *model.Inventory, to emit) { to(float64(inv.ReadAhead)) })},
		{name: "model_cache_fetched_bytes_total", kind: counter, unit: "bytes", help: "Bytes from origins since the agent started.",
			read: cache(func(inv *model.Inventory, to emit) { to(float64(inv.Fetched)) })},
		{name: "model_cache_evictions_total", kind: counter, unit: "1", help: "Models removed to make room since the agent started.",
			read: cache(func(inv *model.Inventory, to emit) { to(float64(inv.Evicted)) })},
		{name: "model_cache_scrub_bytes_total", kind: counter, unit: "bytes", help: "Bytes that the scrub has read again since the agent started.",
			read: cache(func(inv *model.Inventory, to emit) { to(float64(inv.Scrub.Bytes)) })},
		{name: "model_cache_scrub_damaged_total", kind: counter, unit: "1", help: "Files that the scrub has found damaged on the disk since the agent started. They are withdrawn and fetched again.",
			read: cache(func(inv *model.Inventory, to emit) { to(float64(inv.Scrub.Damaged)) })},
		{name: "model_cache_scrub_last_pass_timestamp_seconds", kind: gauge, unit: "unix time", help: "When the scrub last came to the end of all content. Absent before the first time.",
			read: cache(func(inv *model.Inventory, to emit) {
				if !inv.Scrub.Ended.IsZero() {
					to(float64(inv.Scrub.Ended.Unix()))
				}
			})},
		{name: "model_cache_old_revisions", kind: gauge, unit: "1", labels: []string{"model"}, help: "Earlier revisions of the model that are here still.",
			read: models(func(m model.Status, to emit) { to(float64(len(m.Old)), m.Name) })},
		{name: "model_cache_held", kind: gauge, unit: "0 or 1", labels: []string{"model"}, help: "1 if a rollback keeps the model at a revision, whatever its origin has.",
			read: models(func(m model.Status, to emit) { to(oneIf(m.Held != ""), m.Name) })},
		{name: "model_cache_failures_total", kind: counter, unit: "1", labels: []string{"reason"}, help: "Failures to bring a model in since the agent started.",
			read: cache(func(inv *model.Inventory, to emit) {
				for reason, count := range inv.Failures {
					to(float64(count), reason)
				}
			})},
	}
}

func cache(of func(*model.Inventory, emit)) read[*node] {
	return func(n *node, to emit) {
		if n.inventory != nil {
			of(n.inventory, to)
		}
	}
}

func disks(of func(model.Disk, emit)) read[*node] {
	return cache(func(inv *model.Inventory, to emit) {
		for _, d := range inv.Disks {
			of(d, to)
		}
	})
}

func openDisk(d model.Disk, to emit, bytes int64) {
	if d.Error == "" {
		to(float64(bytes), d.Name)
	}
}

func models(of func(model.Status, emit)) read[*node] {
	return cache(func(inv *model.Inventory, to emit) {
		for _, m := range inv.Models {
			of(m, to)
		}
	})
}

// modelsByState shows every state, those with no model too, so that a sum and an alert on 0 work.
func modelsByState(inv *model.Inventory, to emit) {
	count := map[model.State]int{model.Pending: 0, model.Pulling: 0, model.Ready: 0, model.Failed: 0, model.Removing: 0, model.Skipped: 0}
	for _, m := range inv.Models {
		count[m.State]++
	}
	for state, n := range count {
		to(float64(n), string(state))
	}
}
