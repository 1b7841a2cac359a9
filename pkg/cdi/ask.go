package cdi

import (
	"context"
	"maps"
	"slices"

	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// ask has the specs made, in one go if that works. Where one GPU hangs, or what it has ends the child, each is
// asked about by itself: it must not cost the others their devices.
func (w *Writer) ask(ctx context.Context, now want) (Result, error) {
	whole, err := w.generator(ctx, now.Request)
	parts := now.parts()
	if err == nil || len(parts) < 2 || ctx.Err() != nil {
		return whole, err
	}
	sum := Result{Failed: map[string]string{}}
	worked := false
	for _, q := range parts {
		part, partErr := w.generator(ctx, q)
		if ctx.Err() != nil {
			return Result{}, ctx.Err()
		}
		if partErr != nil {
			for _, what := range slices.Concat(q.Units, q.Classes) {
				sum.Failed[what] = partErr.Error()
			}
			continue
		}
		worked = true
		sum.add(part)
	}
	if !worked {
		return Result{}, err
	}
	return sum, nil
}

func (w *Writer) generator(ctx context.Context, q Request) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Deadline)
	defer cancel()
	return w.cfg.Generator.Generate(ctx, q)
}

// parts are a request for each GPU that can be asked for, and one for what is not of a GPU.
func (n want) parts() []Request {
	var parts []Request
	at := map[gpu.UUID]int{}
	for _, u := range n.Units {
		if !slices.Contains(n.Request.Units, u.ID) {
			continue
		}
		i, seen := at[u.GPU]
		if !seen {
			q := n.Request
			q.Units, q.Classes, q.IMEXChannels = nil, nil, nil
			i = len(parts)
			at[u.GPU], parts = i, append(parts, q)
		}
		parts[i].Units = append(parts[i].Units, u.ID)
	}
	if len(n.Request.Classes)+len(n.Request.IMEXChannels) > 0 {
		q := n.Request
		q.Units = nil
		parts = append(parts, q)
	}
	return parts
}

// add adds a part. What all devices of a kind have in common is the same in each.
func (r *Result) add(part Result) {
	maps.Copy(r.Failed, part.Failed)
	for _, s := range part.Specs {
		i := slices.IndexFunc(r.Specs, func(o *specs.Spec) bool { return o.Kind == s.Kind })
		if i < 0 {
			r.Specs = append(r.Specs, s)
			continue
		}
		r.Specs[i].Devices = append(r.Specs[i].Devices, s.Devices...)
	}
}
