package cache

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestWhatOthersWantOfTheDiskStaysFree(t *testing.T) {
	root := small(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		o.hold("a", "b", "c", "d")
		cfg := config(root)
		cfg.Limit, cfg.KeepFreePercent = 8*mega, 20
		cfg.Thresholds = func() []Threshold {
			return []Threshold{
				{Why: "it is less than cache.keepFree", Percent: 10},
				{Why: "the kubelet evicts pods at nodefs.available<50%", Percent: 50},
				{Why: "it is of inodes", Inodes: true, Percent: 5},
				{Why: "it is less", Amount: mega},
			}
		}
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b"), spec("c", "c")})
		stop := run(t, c)
		for _, name := range []string{"a", "b", "c"} {
			ready(t, c, name)
		}
		o.forget()
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b"), spec("c", "c"), spec("d", "d")})
		why := "4.1 MiB of the disk stay free, because the kubelet evicts pods at nodefs.available<50%"
		require.Regexp(t, "^model d needs 1.0 MiB, free [0-9.]+ KiB, evictable 0 B: "+why+": make room on the disk, or unpin or remove models$",
			failed(t, c, "d", "NoSpace").Message)
		require.Zero(t, o.bytesAsked(), "not a byte of d before there is room")
		x, err := c.Explain("d")
		require.NoError(t, err)
		require.Equal(t, why, x.KeptFreeWhy)
		require.EqualValues(t, 4278190, x.KeptFree, "51 % of 8 MiB")
		stop()

		// Of a disk that nobody shares, what the config says stays free.
		cfg.Thresholds = nil
		c = open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b"), spec("c", "c"), spec("d", "d")})
		run(t, c)
		ready(t, c, "d")
	})
}

func TestTheLastInodesStayFree(t *testing.T) {
	root := mounted(t, "size=8m,nr_inodes=3000") // it counts each name of a file as one
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		for seed, files := range map[uint64]int{1: 150, 2: 300, 3: 600} {
			all := map[string][]byte{}
			for n := range files {
				all[fmt.Sprintf("d/%d", n)] = noise(1000*seed+uint64(n), 64)
			}
			o.put(fmt.Sprintf("of%d", files), "r1", all)
		}
		cfg := config(root)
		cfg.Limit = 8 * mega
		cfg.Thresholds = func() []Threshold {
			return []Threshold{{Why: "the kubelet evicts pods at nodefs.inodesFree<70%", Inodes: true, Percent: 70}}
		}
		c := open(t, cfg, o)
		c.Want(nil)
		run(t, c)
		pull(t, c, "of150")
		pull(t, c, "of300")
		require.Equal(t, []string{"of300 Ready"}, names(c), "what nobody asks for any more gives its inodes")
		require.NoError(t, ask(t, c, spec("of600", "of600")))
		require.Regexp(t, `^model of600 needs 606 files \(inodes\), free [0-9]+, evictable 300: `+
			`2130 inodes of the disk stay free, because the kubelet evicts pods at nodefs.inodesFree<70%: `,
			failed(t, c, "of600", "NoSpace").Message)
		require.Equal(t, []string{"of300 Ready", "of600 Pending"}, names(c), "nothing is evicted if it would not do")
	})
}
