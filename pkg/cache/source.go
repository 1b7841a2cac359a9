package cache

import (
	"context"
	"io"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// A Source resolves references of one scheme and reads their files. Implementations are safe for
// concurrent use, keep no state on disk, never retry (the fetcher does), and return *model.Error
// for whatever a person can act on, with Final set where trying again cannot help. The text of an error
// names the reference, or the address within it, and holds no secret.
type Source interface {
	// Resolve says what ref stands for now. File paths are checked by the caller with model.CheckPath.
	Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error)
	// Open reads length bytes of f from offset. The origin's answer must be for exactly that range of
	// exactly f.Version: anything else (200 to a Range, another ETag, another offset) is an error, and
	// no byte of it is handed out. The body may still end early: the caller counts. The caller closes it.
	Open(ctx context.Context, ref model.Ref, f model.File, offset, length int64) (io.ReadCloser, error)
}
