// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"github.com/keyhole-agent/keyhole/fuse"
	"github.com/keyhole-agent/keyhole/fuse/fusetest"
)

// floorPart is the filesystem without anything that checks: every thread is the
// same caller, the secrets are in a map, and nothing is written down.
type floorPart struct{ fs *fuse.FS }

// Floor says what it is to serve.
type Floor struct {
	Dir  string
	UID  uint32 // to whom
	Path string // a secret of one value
}

// Mount serves at fs, with the link secrets.
func (p *floorPart) Mount(f Floor, _ *nothing) (err error) {
	source := &fusetest.Source{}
	if err := source.Put(f.Path, map[string]string{"password": strings.Repeat("x", valueBytes)}); err != nil {
		return err
	}
	p.fs, err = fuse.New(fuse.Config{
		Dir: filepath.Join(f.Dir, "fs"), Private: filepath.Join(f.Dir, "private"), SelfLink: filepath.Join(f.Dir, "secrets"),
		Threads: fusetest.Anybody{Caller: fusetest.As(f.UID, f.UID)},
		Names:   source, Files: source, Refusals: source, Feed: source,
	})
	return err
}

// Requests returns how many requests the kernel has made.
func (p *floorPart) Requests(_ nothing, reply *uint64) error {
	for _, made := range p.fs.Stats().Requests {
		*reply += made
	}
	return nil
}

func (p *floorPart) close() error {
	if p.fs == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return p.fs.Close(ctx)
}
