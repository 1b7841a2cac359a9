package config

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Disk is a further disk of the model cache.
type Disk struct {
	Name     string `yaml:"name"`
	Root     string `yaml:"root"`
	Limit    Bytes  `yaml:"limit,omitempty"`    // 0: a share of the filesystem
	KeepFree *Share `yaml:"keepFree,omitempty"` // nil: that of the cache
}

// Only is the cache as it is on one of its disks alone.
func (c Cache) Only(d Disk) Cache {
	c.Root, c.Limit, c.Disks = d.Root, d.Limit, nil
	if d.KeepFree != nil {
		c.KeepFree = *d.KeepFree
	}
	return c
}

// checkDisks refuses disks of which one would be within another's folders, where pods or the other cache find it.
func (c *Cache) checkDisks(f *file) {
	type place struct{ at, root string }
	places := []place{{"cache.root", filepath.Clean(c.Root)}}
	names := map[string]int{}
	for i, d := range c.Disks {
		at := fmt.Sprintf("cache.disks[%d]", i)
		if model.CheckName(d.Name) != nil {
			f.wrong(at+".name", "want 1 to 63 of a-z 0-9 . _ -, with a letter or digit first and last, such as nvme1, got %q", d.Name)
		} else if d.Name == cache.RootDisk {
			f.wrong(at+".name", "want another name: root is the disk of cache.root")
		} else if first, dup := names[d.Name]; dup {
			f.wrong(at+".name", "%q is also the name of cache.disks[%d]: names must differ", d.Name, first)
		} else {
			names[d.Name] = i
		}
		f.absolute(at+".root", d.Root)
		root := filepath.Clean(d.Root)
		if root == "/" {
			f.wrong(at+".root", "want a directory of its own, such as /var/lib/gpu-agent/disks/%s, got %q", d.Name, d.Root)
		}
		for _, other := range places {
			switch {
			case root == other.root:
				f.wrong(at+".root", "%s is %s too: each disk has a root of its own", d.Root, other.at)
			case within(root, other.root):
				f.wrong(at+".root", "%s is in a folder that the cache of %s keeps: want it beside models and store, such as %s", d.Root, other.at, filepath.Join(other.root, "disks", d.Name))
			case within(other.root, root):
				f.wrong(at+".root", "%s is in a folder that the cache of %s keeps: want them apart", other.root, d.Root)
			}
		}
		places = append(places, place{at + ".root", root})
	}
}

// within reports whether a path is in one of the folders that the cache at root keeps.
func within(path, root string) bool {
	for _, folder := range []string{"models", "store"} {
		kept := filepath.Join(root, folder)
		if path == kept || strings.HasPrefix(path, kept+"/") {
			return true
		}
	}
	return false
}
