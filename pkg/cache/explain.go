package cache

import (
	"fmt"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Explain is all that is known of why a model is here, is not here, or not yet.
func (c *Cache) Explain(name string) (model.Explanation, error) {
	disk, err := c.floor()
	if err != nil {
		return model.Explanation{}, fmt.Errorf("cache root %s: %w", c.cfg.Root, err)
	}
	c.mu.Lock()
	e := c.models[name]
	refused := c.refusals(name)
	if e == nil || !e.asked() && !e.listed && len(e.records()) == 0 {
		c.mu.Unlock()
		if len(refused) > 0 {
			return model.Explanation{}, &model.Error{Reason: "NotFound", Final: true, Text: refused[0]}
		}
		return model.Explanation{}, notFound(name)
	}
	x := model.Explanation{Status: c.status(e), Limit: c.limit, Refused: refused,
		Wished: e.memory.Wished, PinnedByConfig: e.listed && e.spec.Pinned, PinnedByCommand: e.memory.Pinned}
	x.LastUse = e.lastUse()
	used, reserved := c.ledger()
	x.Free = max(0, min(c.limit-used-reserved, disk.free.bytes-disk.keep.bytes))
	x.KeptFree, x.KeptFreeWhy = disk.keep.bytes, disk.why.bytes
	if j := e.job; j != nil {
		x.Needed, x.Admitted = j.fetch+j.again-j.got.Load(), j.admitted
	}
	c.mu.Unlock()
	victims, evictable := c.evictable(e)
	x.Evictable = evictable.bytes
	for _, v := range victims {
		x.Victims = append(x.Victims, v.String())
	}
	return x, nil
}
