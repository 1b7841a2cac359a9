package durable

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestBothWaysToAskWhatIsInMemoryAgree reads some pages of a file, and asks by cachestat and by mincore.
func TestBothWaysToAskWhatIsInMemoryAgree(t *testing.T) {
	const size = 1<<20 + 123
	disk := Disk{}
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, disk.WriteFile(path, make([]byte, size), 0o600))
	f, err := Open(path)
	require.NoError(t, err)
	defer f.Close()
	f.Drop(0, size)
	page := int64(os.Getpagesize())
	require.NoError(t, unix.Fadvise(int(f.file.Fd()), 0, 0, unix.FADV_RANDOM)) // no more than what is asked for
	for _, at := range []int64{0, 5 * page, 6 * page, size - 1} {
		_, err := f.ReadAt(make([]byte, 1), at)
		require.NoError(t, err)
	}
	if all, err := mapped(f.file, 0, size); err != nil || all == size {
		t.Skipf("this filesystem has no disk below it: %d bytes are in memory: %v", all, err)
	}
	for _, r := range []struct{ off, n, want int64 }{
		{0, size, 3*page + size%page}, {0, page, page}, {page, 4 * page, 0}, {5 * page, 3 * page, 2 * page},
		{size - size%page, size % page, size % page}, {6*page + 10, page, page - 10}, {7, 0, 0},
	} {
		by, err := mapped(f.file, r.off, r.n)
		require.NoError(t, err)
		require.Equal(t, r.want, by, r)
		var stat unix.Cachestat_t
		if err := unix.Cachestat(uint(f.file.Fd()), &unix.CachestatRange{}, &stat, 0); err != nil {
			t.Logf("cachestat: %v", err)
			continue
		}
		if r.off%page == 0 { // cachestat counts pages
			got, err := f.Resident(r.off, r.n)
			require.NoError(t, err)
			require.InDelta(t, r.want, got, float64(page-size%page), r)
		}
	}
}

// TestReadAheadReadsAllOfARange also where the device's read_ahead_kb, which bounds one call, is less.
func TestReadAheadReadsAllOfARange(t *testing.T) {
	const size = 24 << 20
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, Disk{}.WriteFile(path, make([]byte, size), 0o600))
	f, err := Open(path)
	require.NoError(t, err)
	defer f.Close()
	f.Drop(0, size)
	if cold, err := f.Resident(0, size); err != nil || cold == size {
		t.Skipf("this filesystem has no disk below it: %d bytes are in memory: %v", cold, err)
	}
	f.ReadAhead(4<<20, 16<<20)
	for _, r := range []struct{ off, n, want int64 }{{0, 4 << 20, 0}, {4 << 20, 16 << 20, 16 << 20}, {20 << 20, 4 << 20, 0}} {
		got, err := f.Resident(r.off, r.n)
		require.NoError(t, err)
		require.Equal(t, r.want, got, r)
	}
}
