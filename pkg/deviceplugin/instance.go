package deviceplugin

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Two instances on one node are an upgrade. A kubelet of 1.36 or older knows one endpoint of a resource,
// the one registered last, and when any connection ends it closes that one: the one registered last must
// be the newer instance's, or its devices are refused although its stream is open. So the older does not
// register again while it knows of a newer, and the newer registers again when the older came after it.
// On newer kubelets both may be registered, and all this changes nothing that pods can see.

// yieldFor is how long the newer instance was seen last for the older to believe it gone. While it
// registers again it has no socket for a moment.
const yieldFor = maxDelay + time.Second

// stamp is the time of an instance's birth in the names of its sockets: letters and digits that sort as
// the times do.
func stamp(born time.Time) string {
	return fmt.Sprintf("%09s", strconv.FormatInt(born.UnixMilli(), 36))
}

// instances is what is known of the others, used by Run alone.
type instances struct {
	born  string    // stamp of our own birth
	newer time.Time // when a living newer one was last seen
	// When a living older one has last registered. It is the time after the kubelet's answer, and is compared
	// with the time before our own question: whoever was heard last is known, also when both asked at once.
	older time.Time
}

// look finds the sockets of other instances. One that refuses connections is a dead one's.
func (in *instances) look(dir string, now time.Time) {
	in.older = time.Time{}
	paths, _ := filepath.Glob(filepath.Join(dir, socketPrefix+"*"+socketSuffix)) // only a bad pattern fails
	for _, path := range paths {
		words := strings.Split(filepath.Base(path), "-")
		born := words[max(len(words)-2, 0)]
		if len(born) != len(in.born) || born == in.born {
			continue // our own, or of a version that did not say
		}
		file := fileAt(path)
		conn, err := net.Dial("unix", path)
		if err != nil || file == nil {
			continue
		}
		_ = conn.Close()
		if born > in.born {
			in.newer = now
		} else if file.ModTime().After(in.older) {
			in.older = file.ModTime()
		}
	}
}

// yields reports whether the kubelet is to be left to a newer instance.
func (in *instances) yields(now time.Time) bool {
	return !in.newer.IsZero() && now.Sub(in.newer) < yieldFor
}
