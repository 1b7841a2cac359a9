package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// disks is a Set of a root and of disks b, c, … each of so many megabytes.
type disks struct {
	*Set
	t     *testing.T
	o     *origin
	roots []Root
	cfg   map[string]Config
}

// onDisks runs f with a Set on fake time.
func onDisks(t *testing.T, limits []int64, f func(t *testing.T, d *disks)) {
	t.Helper()
	var roots []Root
	cfg := map[string]Config{}
	for i, limit := range limits {
		r := Root{Path: dir(t)}
		if i > 0 {
			r.Name = string(rune('a' + i))
		}
		roots = append(roots, r)
		c := config(r.Path)
		c.Limit, c.Keep = limit*mega, 1
		cfg[r.Name] = c
	}
	synctest.Test(t, func(t *testing.T) {
		d := &disks{Set: NewSet(slog.New(slog.DiscardHandler)), t: t, o: newOrigin(), roots: roots, cfg: cfg}
		d.InUse(nil)
		d.Span(roots)
		f(t, d)
	})
}

// start opens a disk and runs it until the returned function is called.
func (d *disks) start(name string) (stop func()) {
	d.t.Helper()
	c, err := Open(d.cfg[name], map[string]Source{"mem": d.o, "hf": d.o})
	require.NoError(d.t, err)
	ctx, cancel := context.WithCancel(d.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx, name, c) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(d.t, <-ended)
		require.NoError(d.t, c.Close())
	})
	d.t.Cleanup(stop)
	synctest.Wait()
	return stop
}

// all starts all disks.
func (d *disks) all() (stop func()) {
	var stops []func()
	for _, r := range d.roots {
		stops = append(stops, d.start(r.Name))
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// lost is what the supervisor of a disk says that cannot be opened.
func (d *disks) lost(name string, stop func()) {
	stop()
	d.Down(name, errors.New("the disk of the cache root is gone"))
}

// after lets what is under way come to its end.
func (d *disks) after(wait time.Duration) {
	time.Sleep(wait)
	synctest.Wait()
}

// at says where models are, and what each is: NAME DISK STATE.
func (d *disks) at() (list []string) {
	if inv := d.Get(); inv != nil {
		for _, m := range inv.Models {
			list = append(list, m.Name+" "+m.Disk+" "+string(m.State))
		}
	}
	return list
}

// home is the disk of a name.
func (d *disks) home(name string) *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.homes[name]
}

// path is below the models folder of a disk.
func (d *disks) path(disk string, parts ...string) string {
	return filepath.Join(append([]string{d.cfg[disk].Root, "models"}, parts...)...)
}

// seen are the links of the root, by name, with the disk to which each leads, and its own models.
func (d *disks) seen() map[string]string {
	names := map[string]string{}
	entries, err := os.ReadDir(d.path("", "by-name"))
	require.NoError(d.t, err)
	for _, e := range entries {
		names[e.Name()] = linkOf(d.path("", "by-name", e.Name()))
	}
	return names
}

func listed(names ...string) (list []model.Spec) {
	for _, n := range names {
		list = append(list, spec(n, n))
	}
	return list
}

func TestModelsAreSpreadOverTheDisksAndFoundInTheRoot(t *testing.T) {
	onDisks(t, []int64{10, 10, 20}, func(t *testing.T, d *disks) {
		d.o.hold("k", "l", "m", "n")
		d.Want(listed("k", "l", "m", "n"))
		require.Nil(t, d.Get(), "nothing is open")
		stop := d.all()
		d.after(time.Minute)
		require.Equal(t, []string{"k c Ready", "l root Ready", "m b Ready", "n c Ready"}, d.at(), "where the most room is for each")
		require.Equal(t, map[string]string{
			"k": "c", "k@r1": "c", "l": "", "l@r1": "", "m": "b", "m@r1": "b", "n": "c", "n@r1": "c",
		}, d.seen())
		target, err := os.Readlink(d.path("", "by-name", "m"))
		require.NoError(t, err)
		require.Equal(t, "../disks/b/by-name/m", target)
		info, err := os.Stat(d.path("", "disks", "b"))
		require.NoError(t, err)
		require.True(t, info.IsDir(), "a folder on which the disk's models are mounted")
		inv := d.Get()
		require.Equal(t, d.path("b", "by-name", "m"), inv.Model("m").Path)
		require.EqualValues(t, 40*mega, inv.Limit)
		require.EqualValues(t, 4*mega, inv.Used)
		require.Equal(t, []model.Disk{
			{Name: "root", Root: d.cfg[""].Root, Limit: 10 * mega, Used: mega},
			{Name: "b", Root: d.cfg["b"].Root, Limit: 10 * mega, Used: mega},
			{Name: "c", Root: d.cfg["c"].Root, Limit: 20 * mega, Used: 2 * mega},
		}, inv.Disks)
		require.Equal(t, inv.Models, d.Promised().Get().Models)

		stop()
		require.NotNil(t, d.Promised().Get(), "a stop is no news")
		require.Nil(t, d.Get())
		d.o.forget()
		d.all()
		d.after(time.Minute)
		require.Equal(t, []string{"k c Ready", "l root Ready", "m b Ready", "n c Ready"}, d.at(), "what is there stays there")
		require.Empty(t, d.o.asked)
	})
}

func TestADiskThatIsGoneTakesNothingOfTheOthersWithIt(t *testing.T) {
	onDisks(t, []int64{4, 10}, func(t *testing.T, d *disks) {
		d.o.hold("k", "l", "m")
		d.Want(listed("k", "l"))
		d.start("")
		stop := d.start("b")
		d.after(time.Minute)
		require.Equal(t, []string{"k b Ready", "l b Ready"}, d.at())

		d.lost("b", stop)
		require.Equal(t, []string{"k b Pending", "l b Pending"}, d.at())
		require.Equal(t, "DiskGone", d.Get().Model("k").Reason)
		require.Contains(t, d.Get().Model("k").Message, "it is on disk b, which is waited for until 00:06:00 UTC")
		require.Empty(t, d.Promised().Get().Model("k").Path)
		_, err := d.Pull(t.Context(), spec("k", "k"))
		require.ErrorContains(t, err, "model k: it is on disk b, which is waited for")
		x, err := d.Explain("l")
		require.NoError(t, err)
		require.Equal(t, "DiskGone", x.Reason)
		require.Equal(t, []model.Problem{{Reason: "DiskGone", Message: "disk b: the disk of the cache root is gone"}}, d.Get().Problems)
		_, err = d.Pull(t.Context(), spec("m", "m"))
		require.NoError(t, err)
		d.after(time.Minute)
		require.Equal(t, []string{"k b Pending", "l b Pending", "m root Ready"}, d.at(), "others go on")

		// It comes back in time: nothing was fetched again.
		d.o.forget()
		stop = d.start("b")
		require.Equal(t, []string{"k b Ready", "l b Ready", "m root Ready"}, d.at())
		require.Empty(t, d.o.asked)

		// Or late: then what the label says is what stays, and the disk's own copies go.
		d.lost("b", stop)
		d.after(diskPatience + time.Minute)
		require.Equal(t, []string{"k root Ready", "l root Ready", "m root Ready"}, d.at())
		d.start("b")
		d.after(time.Minute)
		require.Equal(t, []string{"k root Ready", "l root Ready", "m root Ready"}, d.at())
		holds(t, d.cfg[""].Root, "k", d.o.content["k"])
		require.NoDirExists(t, d.path("b", "by-name", "k"))
		require.Zero(t, d.Get().Disks[1].Used)
		require.Equal(t, "", d.seen()["k"], "a directory of the root's own")
	})
}

func TestWithoutTheRootNothingIsPromisedOfTheOthers(t *testing.T) {
	onDisks(t, []int64{1, 10}, func(t *testing.T, d *disks) {
		d.o.hold("k")
		d.Want(listed("k"))
		stop := d.start("")
		require.Nil(t, d.Promised().Get(), "not while it is not known what the other disk has")
		d.start("b")
		d.after(time.Minute)
		require.Equal(t, []string{"k b Ready"}, d.at())
		d.lost("", stop)
		require.Equal(t, []string{"k b Failed"}, d.at())
		require.Equal(t, "NotLinked", d.Promised().Get().Model("k").Reason)
		require.Contains(t, d.Get().Model("k").Message, "which leads to it, is not open")
		x, err := d.Explain("k")
		require.NoError(t, err)
		require.Equal(t, "NotLinked", x.Reason)
		d.o.forget()
		d.start("")
		require.Equal(t, []string{"k b Ready"}, d.at())
		require.Zero(t, d.o.looks())

		// What somebody put in the link's place is not written over.
		require.NoError(t, os.Remove(d.path("", "by-name", "k")))
		require.NoError(t, os.Mkdir(d.path("", "by-name", "k"), 0o755))
		d.after(settleEvery)
		require.Equal(t, "NotLinked", d.Promised().Get().Model("k").Reason)
		require.Contains(t, d.Get().Model("k").Message, "is there already")
	})
}

func TestAModelGoesWhereThereIsRoomBeforeAnythingIsEvicted(t *testing.T) {
	onDisks(t, []int64{3, 3}, func(t *testing.T, d *disks) {
		d.o.hold("k", "l", "m", "n", "o")
		d.o.put("big", "r1", map[string][]byte{"f": noise(9, 2*mega)})
		d.Want(nil)
		d.all()
		for _, name := range []string{"k", "l", "m"} {
			_, err := d.Pull(t.Context(), spec(name, name))
			require.NoError(t, err)
			d.after(time.Minute)
		}
		require.Equal(t, []string{"k root Ready", "l b Ready", "m root Ready"}, d.at())

		// b has room for two more. It is to have p when a pod asks for that, and so big is begun on the root.
		p := spec("p", "p")
		p.OnDemand = true
		var log bytes.Buffer
		d.log = slog.New(slog.NewTextHandler(&log, nil))
		d.Want(append([]model.Spec{p}, listed("big")...))
		d.after(10 * time.Minute)
		require.Contains(t, log.String(), "model=big from=cache.root to=\"disk b\"")
		d.Want(listed("n", "big"))
		d.after(10 * time.Minute)
		require.Equal(t, []string{"big b Ready", "k root Ready", "l b Ready", "m root Ready", "n root Ready"}, d.at())
		require.Zero(t, d.Get().Evicted)

		// Now something has to go, on one of them.
		d.Want(listed("n", "big", "o"))
		d.after(10 * time.Minute)
		require.Equal(t, []string{"big b Ready", "l b Ready", "m root Ready", "n root Ready", "o root Ready"}, d.at())
		require.EqualValues(t, 1, d.Get().Evicted)

		// And what the config asks for does not: a disk says so, once both have refused.
		d.Want(listed("n", "big", "o", "k", "l", "m"))
		d.after(time.Hour)
		require.Equal(t, []string{"big b Ready", "k root Pending", "l b Ready", "m root Ready", "n root Ready", "o root Ready"}, d.at())
		require.Equal(t, "NoSpace", d.Get().Model("k").Reason)
		require.Less(t, d.o.looks(), 40, "it is not carried to and fro")
	})
}

func TestARestartResumesOnTheSameDisk(t *testing.T) {
	onDisks(t, []int64{10, 20}, func(t *testing.T, d *disks) {
		d.o.put("k", "r1", map[string][]byte{"f": noise(1, 2*mega)})
		d.o.onOpen = func(n int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			return silent{ctx, bytes.NewReader(part[:len(part)/2])}, nil, n > 8
		}
		d.Want(listed("k"))
		stop := d.all()
		d.after(10 * time.Second)
		require.Equal(t, []string{"k b Pulling"}, d.at())
		got := d.Get().Model("k").Done
		require.Positive(t, got)
		stop()

		d.cfg["b"] = func(c Config) Config { c.Limit = 3 * mega; return c }(d.cfg["b"]) // the other has more room by now
		d.o.onOpen = nil
		d.o.forget()
		d.all()
		d.after(time.Minute)
		require.Equal(t, []string{"k b Ready"}, d.at())
		require.LessOrEqual(t, d.o.bytesAsked(), 2*mega-got)
		require.NoDirExists(t, layout(d.cfg[""].Root).partial("k"))
	})
}

func TestADiskOutOfTheConfigKeepsItsFilesAndLosesItsLinks(t *testing.T) {
	onDisks(t, []int64{1, 10}, func(t *testing.T, d *disks) {
		d.o.hold("k")
		d.Want(nil)
		d.start("")
		stop := d.start("b")
		_, err := d.Pull(t.Context(), spec("k", "k"))
		require.NoError(t, err)
		d.after(time.Minute)
		require.Equal(t, map[string]string{"k": "b", "k@r1": "b"}, d.seen())
		stop()
		require.Equal(t, map[string]string{"k": "b", "k@r1": "b"}, d.seen(), "while it is not open")
		d.Span(d.roots[:1])
		require.Empty(t, d.seen())
		require.Empty(t, d.Promised().Get().Models)
		holds(t, d.cfg["b"].Root, "k", d.o.content["k"])
	})
}

func TestEachCommandFindsTheDiskOfItsModel(t *testing.T) {
	onDisks(t, []int64{3, 10}, func(t *testing.T, d *disks) {
		d.o.hold("k", "l", "m")
		d.Want(nil)
		d.all()
		for _, name := range []string{"k", "l", "m"} {
			_, err := d.Pull(t.Context(), spec(name, name))
			require.NoError(t, err)
			d.after(time.Minute)
		}
		require.Equal(t, []string{"k b Ready", "l b Ready", "m b Ready"}, d.at())
		d.o.put("k", "r2", map[string][]byte{"f": noise(7, mega)})
		_, err := d.Pull(t.Context(), model.Spec{Name: "k"})
		require.NoError(t, err)
		d.after(time.Minute)
		require.Equal(t, "r2", d.Get().Model("k").Revision)
		require.Equal(t, map[string]string{"k": "b", "k@r1": "b", "k@r2": "b", "l": "b", "l@r1": "b", "m": "b", "m@r1": "b"}, d.seen())
		done, err := d.Rollback(t.Context(), "k", "")
		require.NoError(t, err)
		require.Equal(t, model.Rollback{From: "r2", To: "r1"}, done)
		require.NoError(t, d.Pin("l"))
		require.ErrorContains(t, d.Remove(t.Context(), "l", false), "pinned")
		require.NoError(t, d.Unpin("l"))
		require.NoError(t, d.Remove(t.Context(), "l", false))
		damaged, err := d.Verify(t.Context(), "m")
		require.NoError(t, err)
		require.Empty(t, damaged)
		x, err := d.Explain("m")
		require.NoError(t, err)
		require.EqualValues(t, 10*mega, x.Limit, "of its disk")
		require.Equal(t, "b", x.Disk)
		require.ErrorContains(t, d.Pin("l"), `model "l" is not in the cache`)
		synctest.Wait()
		require.NotContains(t, d.seen(), "l")

		var bundle bytes.Buffer
		require.NoError(t, d.Export(t.Context(), []string{"m", "k"}, &bundle))
		require.NoError(t, d.Remove(t.Context(), "m", false))
		d.InUse([]model.Use{{Model: "k", By: "ns/pod"}})
		require.ErrorContains(t, d.Remove(t.Context(), "k", false), "in use by pod ns/pod")
		var came []string
		require.NoError(t, d.Import(t.Context(), &bundle, func() {}, func(s model.Status) { came = append(came, s.Name) }))
		require.Equal(t, []string{"m", "k"}, came)
		synctest.Wait()
		require.Equal(t, []string{"k b Ready", "m b Ready"}, d.at())
	})
}

func TestADiskThatRefusedIsNotAskedAgainAtOnce(t *testing.T) {
	onDisks(t, []int64{4, 4}, func(t *testing.T, d *disks) {
		d.o.hold("k")
		k := spec("k", "k")
		k.OnDemand = true // nothing of it is anywhere
		d.Want([]model.Spec{k})
		d.all()
		root, b := d.disk(""), d.disk("b")
		require.Equal(t, root, d.home("k"))
		files := d.o.models["k"].Files
		require.False(t, d.elsewhere(root, "k", files, false), "there is room")
		require.True(t, d.elsewhere(root, "k", files, true), "for some other reason there is none")
		require.Equal(t, b, d.home("k"))
		require.False(t, d.elsewhere(root, "k", files, true), "it is not there any more")
		require.False(t, d.elsewhere(b, "k", files, true), "or it would be carried to and fro")
		time.Sleep(refusedFor)
		require.True(t, d.elsewhere(b, "k", files, true))
		require.Equal(t, root, d.home("k"))
	})
}

func TestTheHubOfTheRootFollowsAModelFromDiskToDisk(t *testing.T) {
	onDisks(t, []int64{4, 6, 5}, func(t *testing.T, d *disks) {
		d.o.hub["org"] = model.Hub{Repo: "org/m", Revision: "main"}
		d.o.put("org", strings.Repeat("0a", 20), map[string][]byte{"config.json": noise(1, 2*mega)})
		d.Want([]model.Spec{{Name: "k", Source: model.Ref{Scheme: "hf", Host: "org", Path: "/m"}}})
		d.start("")
		stops := map[string]func(){"b": d.start("b"), "c": d.start("c")}
		for _, disk := range []string{"b", "c"} {
			d.after(time.Minute)
			require.Equal(t, []string{"k " + disk + " Ready"}, d.at())
			require.Equal(t, disk, linkOf(d.path("", "hub", "models--org--m")))
			d.lost(disk, stops[disk])
			d.after(diskPatience + time.Minute)
		}
		require.Equal(t, []string{"k root Ready"}, d.at())
		text, err := os.ReadFile(d.path("", "hub", "models--org--m", "refs", "main"))
		require.NoError(t, err)
		require.Equal(t, strings.Repeat("0a", 20), string(text))
	})
}

func TestModelsOfOneRepositoryAreOnOneDiskAndInTheHubOfTheRoot(t *testing.T) {
	onDisks(t, []int64{4, 5, 4}, func(t *testing.T, d *disks) {
		commit := strings.Repeat("0a", 20)
		d.o.hub["org"] = model.Hub{Repo: "org/m", Revision: "main"}
		d.o.put("org", commit, map[string][]byte{"config.json": noise(1, 2*mega)})
		d.o.hold("other")
		d.Want(nil)
		stop := d.all()
		for _, s := range []model.Spec{
			{Name: "k", Source: model.Ref{Scheme: "hf", Host: "org", Path: "/m"}},
			{Name: "l", Source: model.Ref{Scheme: "hf", Host: "org", Path: "/m@" + commit}},
			spec("other", "other"),
		} {
			_, err := d.Pull(t.Context(), s)
			require.NoError(t, err)
			d.after(time.Minute)
		}
		require.Equal(t, []string{"k b Ready", "l b Ready", "other root Ready"}, d.at())
		require.EqualValues(t, 2*mega, d.Get().Disks[1].Used, "they share what they hold")
		target, err := os.Readlink(d.path("", "hub", "models--org--m"))
		require.NoError(t, err)
		require.Equal(t, "../disks/b/hub/models--org--m", target)
		require.NoError(t, os.Remove(d.path("", "disks", "b")))
		require.NoError(t, os.Symlink(d.path("b"), d.path("", "disks", "b"))) // as a mount would be
		text, err := os.ReadFile(d.path("", "hub", "models--org--m", "refs", "main"))
		require.NoError(t, err)
		require.Equal(t, commit, string(text))
		body, err := os.ReadFile(d.path("", "by-name", "k@"+commit[:12], "config.json"))
		require.NoError(t, err)
		require.Equal(t, d.o.content["org"]["config.json"], body)

		// The root looks through that mount, and takes nothing there for its own.
		stop()
		d.all()
		d.after(time.Minute)
		require.Equal(t, []string{"k b Ready", "l b Ready", "other root Ready"}, d.at())
		require.EqualValues(t, mega, d.Get().Disks[0].Used)
		require.NoError(t, d.Remove(t.Context(), "k", false))
		require.NoError(t, d.Remove(t.Context(), "l", false))
		synctest.Wait()
		require.NoFileExists(t, d.path("", "hub", "models--org--m"))
		require.Equal(t, map[string]string{"other": "", "other@r1": ""}, d.seen())
	})
}

func TestARootOnTheFilesystemOfAnotherIsRefused(t *testing.T) {
	one, two := dir(t), filepath.Join(dir(t), "not", "mounted")
	cfg := config(two)
	cfg.Apart = []string{one}
	_, err := Open(cfg, nil)
	require.EqualError(t, err, "cache root "+two+" is on the filesystem of cache root "+one+": mount its own disk there, or take it out of cache.disks")
	require.NoDirExists(t, two, "nothing was made")
}

// TestModelsOfOneRepositoryAreTogetherFromTheStartAndSaidWhereTheyCannotBe has a configuration of two, on an empty node.
func TestModelsOfOneRepositoryAreTogetherFromTheStartAndSaidWhereTheyCannotBe(t *testing.T) {
	hub := func(name, of string) model.Spec {
		return model.Spec{Name: name, Source: model.Ref{Scheme: "hf", Host: of, Path: "/m"}}
	}
	put := func(d *disks, of, commit string, seed uint64, size int) {
		d.o.hub[of] = model.Hub{Repo: of + "/m", Revision: "main"}
		d.o.put(of, strings.Repeat(commit, 20), map[string][]byte{"w": noise(seed, size*mega)})
	}
	onDisks(t, []int64{8, 8, 8}, func(t *testing.T, d *disks) {
		put(d, "org", "0a", 1, 2)
		d.Want([]model.Spec{hub("k", "org"), hub("l", "org"), hub("n", "org")})
		d.all()
		d.after(time.Minute)
		home := d.Get().Models[0].Disk
		require.Equal(t, []string{"k " + home + " Ready", "l " + home + " Ready", "n " + home + " Ready"}, d.at())
		require.Empty(t, d.Get().Problems)
	})
	// The second does not fit where the first is.
	for _, limits := range [][]int64{{1, 4, 5}, {4, 4}} {
		onDisks(t, limits, func(t *testing.T, d *disks) {
			put(d, "org", "0a", 1, 3)
			d.Want([]model.Spec{hub("k", "org")})
			stop := d.all()
			d.after(time.Minute)
			first := d.Get().Models[0].Disk
			put(d, "org", "0b", 2, 3)
			later := hub("l", "org")
			later.Source.Path = "/m@" + strings.Repeat("0b", 20)
			d.Want([]model.Spec{hub("k", "org"), later})
			d.after(time.Minute)
			second := d.Get().Models[1].Disk
			require.Equal(t, []string{"k " + first + " Ready", "l " + second + " Ready"}, d.at())
			require.NotEqual(t, first, second)
			for range 2 {
				require.Len(t, d.Get().Problems, 1)
				require.Equal(t, "HubSplit", d.Get().Problems[0].Reason)
				require.Contains(t, d.Get().Problems[0].Message, "clients of the hub find of repository org/m what is on "+Root{Name: strings.TrimSuffix(first, RootDisk)}.called()+", and not what is on")
				to := first
				if first == RootDisk {
					to = ""
				}
				require.Equal(t, to, linkOf(d.path("", "hub", "models--org--m")))
				stop() // and as it was after a restart
				stop = d.all()
				d.after(time.Minute)
			}
			d.Want([]model.Spec{hub("k", "org")})
			require.NoError(t, d.Remove(t.Context(), "l", false))
			d.after(time.Minute)
			require.Empty(t, d.Get().Problems)
		})
	}
}
