package cache

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	smallShare = 64       // a file of at most this part of a range is small
	batchFiles = 1000     // small files that are made durable together
	batchBytes = 32 << 20 // or so many bytes of them: they are dirty pages until then
	fewFiles   = 16       // so many are synced one by one, not with all that others have written
)

// smallFiles are a job's small files while it runs. One comes whole into the buffer of its stream, is hashed
// there and written in one piece. What a directory of many of them takes is the waits for the disk, so a batch
// has one for the content and one for the list that says it is there.
type smallFiles struct {
	workers  int // of the job
	waiting  []*slot
	coming   int                  // on their way
	batch    map[int]model.Digest // written and verified and in no list, by slot
	batched  int64                // bytes of batch
	settling bool                 // somebody makes a batch durable
}

// claimSmall takes the next one. f.mu is held.
func (f *fetcher) claimSmall(ctx context.Context) claim {
	s := f.waiting[0]
	f.waiting = f.waiting[1:]
	f.coming++
	s.inflight++
	return claim{slot: s, i: smallRange, ctx: ctx}
}

func (f *fetcher) fetchSmall(ctx context.Context, s *slot) error {
	for tries := 0; ; tries++ {
		sum, err := f.bringSmall(ctx, s)
		if errors.Is(err, errYield) {
			continue
		}
		if err == nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.batch == nil {
				f.batch = map[int]model.Digest{}
			}
			f.batch[s.n] = sum
			f.batched += s.file.Size
			f.got.Add(s.file.Size)
			return nil
		}
		if stop := f.pause(ctx, err, tries); stop != nil {
			return stop
		}
	}
}

func (f *fetcher) bringSmall(ctx context.Context, s *slot) (sum model.Digest, err error) {
	if s.file.Size == 0 {
		return f.keepSmall(s, nil) // nothing to ask for
	}
	_, err = f.stream(ctx, s, 0, s.file.Size, false, func(p []byte, _ int64) (err error) {
		sum, err = f.keepSmall(s, p)
		return err
	})
	return sum, err
}

// keepSmall verifies and writes a small file.
func (f *fetcher) keepSmall(s *slot, content []byte) (model.Digest, error) {
	if int64(len(content)) != s.file.Size {
		return "", nil // the stream ended early, and says so
	}
	s.ranges = &ranges{} // for its hashes
	defer func() { s.ranges = nil }()
	s.unhash()
	s.hash.Write(content) // a hash never fails
	if s.check != nil {
		s.check.Write(content)
	}
	sum := model.Digest(hex.EncodeToString(s.hash.Sum(nil)))
	if text := s.wrong(sum); text != "" {
		return "", wrongContent(s, sum, text)
	}
	if sum == s.file.Digest {
		sum = s.file.Digest // one text of both
	}
	if err := createAnew(f.disk, s.path(), content); err != nil {
		return "", ours(err)
	}
	return sum, nil
}

// createAnew makes a small file, not yet durable, in the place of one of a try whose list was not written.
func createAnew(disk durable.Disk, path string, content []byte) error {
	err := disk.CreateFile(path, content, 0o444)
	if errors.Is(err, fs.ErrExist) {
		if err = disk.Remove(path); err == nil {
			err = disk.CreateFile(path, content, 0o444)
		}
	}
	return err
}

// settle makes what came durable and counts it, batch by batch while there is a whole one, and the last
// one too when all have come or it is due.
func (f *fetcher) settle(due bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for !f.settling && len(f.batch) > 0 &&
		(due || len(f.batch) >= batchFiles || f.batched >= batchBytes || len(f.waiting) == 0 && f.coming == 0) {
		batch, size := f.batch, f.batched
		f.batch, f.batched, f.settling, due = nil, 0, true, false
		f.mu.Unlock()
		err := f.syncBatch(batch)
		f.mu.Lock()
		f.settling = false
		if err != nil {
			f.got.Add(-size)
			return ours(err)
		}
		for n, sum := range batch {
			f.slots[n].sum = sum
		}
		f.left -= len(batch)
		f.cond.Broadcast()
	}
	return nil
}

func (j *job) syncBatch(batch map[int]model.Digest) error {
	if len(batch) > fewFiles {
		if err := j.disk.SyncFS(j.dir); err != nil {
			return err
		}
	} else {
		for _, n := range slices.Sorted(maps.Keys(batch)) {
			if err := j.disk.SyncFile(j.slots[n].path()); err != nil {
				return err
			}
		}
	}
	return j.writeBatch(batch)
}

// writeBatch notes slots as complete that are on the disk, or are links of what is.
func (j *job) writeBatch(batch map[int]model.Digest) error {
	if len(batch) == 0 {
		return nil
	}
	j.batches++ // a failed one may be there nevertheless
	return writeJSON(j.disk, filepath.Join(j.dir, fmt.Sprintf("done-%05d.json", j.batches)), batch, 0o600)
}

// readBatches is what writeBatch noted.
func (j *job) readBatches() (map[int]model.Digest, error) {
	paths, err := filepath.Glob(filepath.Join(j.dir, "done-*.json"))
	if err != nil {
		return nil, err
	}
	sums := map[int]model.Digest{}
	for _, path := range paths {
		if _, err := fmt.Sscanf(filepath.Base(path), "done-%d.json", &j.batches); err != nil {
			return nil, fmt.Errorf("%s: not a list of this cache's", path)
		}
		batch := map[int]model.Digest{}
		if err := readJSON(path, &batch); err != nil {
			return nil, err
		}
		maps.Copy(sums, batch)
	}
	return sums, nil
}
