// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/keyhole-agent/keyhole/secret"
)

// OpenDir takes the listing that the directory's reader will see. The kernel has
// checked the mode; v is closed to those, too, whom modes do not stop.
func (t *tree) OpenDir(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	request := t.request()
	names, err := t.list(in.NodeId, in.Pid, request)
	if err != nil {
		return t.status("list", request, err)
	}
	out.Fh = t.listings.add(names)
	return gofuse.OK
}

// ReadDir continues a listing. One that is not known, from before a restart or
// among too many, is taken again.
func (t *tree) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	names, found := t.listings.get(in.Fh)
	if !found {
		var err error
		request := t.request()
		if names, err = t.list(in.NodeId, in.Pid, request); err != nil {
			return t.status("list", request, err)
		}
	}
	for i := in.Offset; i < uint64(len(names)); i++ {
		// The inode number is unknown, as to most network filesystems: finding
		// it means looking up each name.
		if !out.AddDirEntry(gofuse.DirEntry{Name: names[i].name, Mode: names[i].mode}) {
			break
		}
	}
	return gofuse.OK
}

// ReleaseDir ends a listing.
func (t *tree) ReleaseDir(in *gofuse.ReleaseIn) { t.listings.remove(in.Fh) }

// listed is one name in a listing and the type of what it names.
type listed struct {
	name string
	mode uint32
}

func (t *tree) list(id uint64, thread uint32, request string) ([]listed, error) {
	n, err := t.table.node(id)
	if err != nil {
		return nil, err
	}
	names := []listed{{".", gofuse.S_IFDIR}, {"..", gofuse.S_IFDIR}}
	switch n.kind {
	case rootFolder:
		return append(names, listed{"self", gofuse.S_IFLNK}, listed{viewsDir, gofuse.S_IFDIR}), nil
	case viewsFolder:
		return nil, fmt.Errorf("%w: views cannot be listed", secret.ErrDenied)
	case folder:
		entries, err := t.Names.Folder(t.ctx, n.view.as(thread, request), n.path)
		for _, entry := range entries {
			names = append(names, listed{entry.Path.Base(), gofuse.S_IFDIR})
		}
		return names, err
	case secretDir:
		info, err := t.describe(n, thread, request)
		for _, key := range info.Keys {
			names = append(names, listed{key.Key.String(), gofuse.S_IFREG})
		}
		return names, err
	}
	return nil, errStale
}

// maxListings bounds how many listings are kept; the oldest go first.
const maxListings = 256

// listings holds what readers of directories are going through. The numbers
// start at random, so that a directory opened before a restart is not taken for
// one opened after.
type listings struct {
	mu     sync.Mutex
	oldest uint64 // no number below it is in use
	next   uint64
	open   map[uint64][]listed
}

func newListings() listings {
	var start [8]byte
	_, _ = rand.Read(start[:]) // never fails, by its documentation
	first := binary.BigEndian.Uint64(start[:]) >> 1
	return listings{oldest: first, next: first, open: map[uint64][]listed{}}
}

func (l *listings) add(names []listed) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.open) >= maxListings {
		delete(l.open, l.oldest)
		l.oldest++
	}
	number := l.next
	l.next++
	l.open[number] = names
	return number
}

func (l *listings) get(number uint64) ([]listed, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	names, found := l.open[number]
	return names, found
}

func (l *listings) remove(number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, number)
	if len(l.open) == 0 {
		l.oldest = l.next
	}
}
