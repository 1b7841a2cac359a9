package deviceplugin

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// service answers the kubelet's calls for one resource from the newest snapshot and policy. It has no state.
type service struct {
	api.UnimplementedDevicePluginServer
	plugin   *Plugin
	resource string
}

func options() *api.DevicePluginOptions {
	return &api.DevicePluginOptions{GetPreferredAllocationAvailable: true}
}

func (s *service) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return options(), nil
}

// ListAndWatch sends what is, then again whenever the list itself has changed: readings change every
// second, and the kubelet recomputes the node's capacity for each message.
func (s *service) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	var sent []resource.Unit
	for first := true; ; first = false {
		snapshot, changed := s.plugin.snapshots.Watch()
		policy, edited := s.plugin.policies.Watch()
		if units := s.units(policy, snapshot); first || !slices.Equal(units, sent) {
			if err := stream.Send(&api.ListAndWatchResponse{Devices: devices(units)}); err != nil {
				return err
			}
			sent = units
		}
		select {
		case <-changed:
		case <-edited:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// units is the list as far as the kubelet can see it: it has no field for a reason.
func (s *service) units(policy resource.Policy, snapshot *gpu.Snapshot) []resource.Unit {
	for _, offer := range policy.Offers(snapshot) {
		if offer.Resource != s.resource {
			continue
		}
		units := slices.Clone(offer.Units)
		for i := range units {
			units[i].Reason = ""
		}
		return units
	}
	return nil
}

// now is what calls are answered from.
func (s *service) now() (resource.Policy, *gpu.Snapshot) {
	policy, _ := s.plugin.policies.Watch()
	snapshot, _ := s.plugin.snapshots.Watch()
	return policy, snapshot
}

func devices(units []resource.Unit) []*api.Device {
	list := make([]*api.Device, 0, len(units))
	for _, u := range units {
		d := &api.Device{ID: string(u.ID), Health: api.Unhealthy}
		if u.Healthy {
			d.Health = api.Healthy
		}
		if u.NUMANode >= 0 {
			d.Topology = &api.TopologyInfo{Nodes: []*api.NUMANode{{ID: int64(u.NUMANode)}}}
		}
		list = append(list, d)
	}
	return list
}

// GetPreferredAllocation never returns an error: the kubelet rejects the pod for it, and fills up a
// short answer by itself.
func (s *service) GetPreferredAllocation(_ context.Context, in *api.PreferredAllocationRequest) (*api.PreferredAllocationResponse, error) {
	policy, snapshot := s.now()
	out := &api.PreferredAllocationResponse{}
	for _, c := range in.GetContainerRequests() {
		picked := policy.Prefer(snapshot, convert[resource.ID](c.GetAvailableDeviceIDs()),
			convert[resource.ID](c.GetMustIncludeDeviceIDs()), int(c.GetAllocationSize()))
		out.ContainerResponses = append(out.ContainerResponses,
			&api.ContainerPreferredAllocationResponse{DeviceIDs: convert[string](picked)})
	}
	return out, nil
}

// Allocate answers all containers or none; its error is what the person sees in the pod's event.
func (s *service) Allocate(_ context.Context, in *api.AllocateRequest) (*api.AllocateResponse, error) {
	policy, snapshot := s.now()
	out := &api.AllocateResponse{}
	for _, c := range in.GetContainerRequests() {
		edits, err := policy.Edits(snapshot, convert[resource.ID](c.GetDevicesIds()))
		if err != nil {
			s.plugin.cfg.Log.Warn("allocation refused", "resource", s.resource, "err", err)
			return nil, status.Error(codes.FailedPrecondition, err.Error())
		}
		out.ContainerResponses = append(out.ContainerResponses, answer(edits))
	}
	models := policy.Config().Models
	for _, c := range in.GetContainerRequests() {
		s.plugin.cfg.Log.Info("allocated", "resource", s.resource, "devices", c.GetDevicesIds(), "models", models)
	}
	s.plugin.allocations.Add(uint64(len(out.ContainerResponses)))
	if models != "" {
		s.plugin.mounted.Add(uint64(len(out.ContainerResponses)))
	}
	if told := s.plugin.cfg.Allocated; told != nil {
		told()
	}
	return out, nil
}

func answer(e resource.Edits) *api.ContainerAllocateResponse {
	out := &api.ContainerAllocateResponse{Envs: e.Env, Annotations: e.Annotations}
	for _, m := range e.Mounts {
		out.Mounts = append(out.Mounts, &api.Mount{HostPath: m.HostPath, ContainerPath: m.ContainerPath, ReadOnly: m.ReadOnly})
	}
	for _, name := range e.CDIDevices {
		out.CdiDevices = append(out.CdiDevices, &api.CDIDevice{Name: name})
	}
	for _, n := range e.DeviceNodes {
		out.Devices = append(out.Devices,
			&api.DeviceSpec{HostPath: n.HostPath, ContainerPath: n.ContainerPath, Permissions: n.Permissions})
	}
	return out
}

// PreStartContainer is never asked for; answering it is harmless.
func (s *service) PreStartContainer(context.Context, *api.PreStartContainerRequest) (*api.PreStartContainerResponse, error) {
	return &api.PreStartContainerResponse{}, nil
}

func convert[To, From ~string](from []From) []To {
	to := make([]To, len(from))
	for i, v := range from {
		to[i] = To(v)
	}
	return to
}
