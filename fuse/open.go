// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/keyhole-agent/keyhole/secret"
)

// Readlink leads the caller to its view.
func (t *tree) Readlink(_ <-chan struct{}, header *gofuse.InHeader) ([]byte, gofuse.Status) {
	if header.NodeId != selfID {
		return nil, gofuse.EINVAL
	}
	request := t.request()
	ctx, cancel := context.WithTimeout(t.ctx, t.Deadline)
	defer cancel()
	caller, err := t.caller(ctx, header, "self", request)
	if err != nil {
		return nil, t.status("self", request, err)
	}
	v := t.table.view(caller, t.Now())
	return append(append(make([]byte, 0, selfSize), viewsDir+"/"...), v.name...), gofuse.OK
}

// Open authorizes every single open, by the process that asks. It must never
// answer ENOSYS: the kernel would stop asking, for all files.
func (t *tree) Open(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	if in.Flags&(syscall.O_ACCMODE|syscall.O_TRUNC) != syscall.O_RDONLY {
		return gofuse.EROFS
	}
	request := t.request()
	if err := t.open(in, request); err != nil {
		return t.status("open", request, err)
	}
	out.OpenFlags = gofuse.FOPEN_KEEP_CACHE | gofuse.FOPEN_NOFLUSH
	return gofuse.OK
}

func (t *tree) open(in *gofuse.OpenIn, request string) error {
	n, err := t.table.node(in.NodeId)
	if err != nil {
		return err
	}
	if n.kind != file || n.expired(t.Now()) {
		return errStale
	}
	ctx, cancel := context.WithTimeout(t.ctx, t.Deadline)
	defer cancel()
	caller, err := t.caller(ctx, &in.InHeader, "open", request)
	if err != nil {
		return err
	}
	// Before it is authorized: a revocation that comes in between then finds
	// the node among those with content.
	n.opened.Store(true)
	err = t.Files.Open(ctx, caller, n.view.as(in.Pid, request), n.file())
	if errors.Is(err, secret.ErrNotFound) && !t.current(n, in.Pid, request) {
		return errStale
	}
	return err
}

// current reports whether a lookup would find n again. If so, an open that did
// not find it is not to be repeated: its caller may not know.
func (t *tree) current(n *node, thread uint32, request string) bool {
	info, err := t.describe(n, thread, request)
	return err == nil && info.Current == n.version
}

// Read returns bytes of a version. Its descriptor was authorized when it was
// opened, and may be used by whoever has it; the view must still be allowed.
// buffer is the locked memory that the reply is sent from.
func (t *tree) Read(_ <-chan struct{}, in *gofuse.ReadIn, buffer []byte) (gofuse.ReadResult, gofuse.Status) {
	request := t.request()
	count, err := t.read(in, request, buffer)
	if err != nil {
		return nil, t.status("read", request, err)
	}
	return gofuse.ReadResultData(buffer[:count]), gofuse.OK
}

func (t *tree) read(in *gofuse.ReadIn, request string, buffer []byte) (int, error) {
	n, err := t.table.node(in.NodeId)
	if err != nil {
		return 0, err
	}
	n.opened.Store(true) // not by this node, perhaps: its view may have been made again
	ctx, cancel := context.WithTimeout(t.ctx, t.Deadline)
	defer cancel()
	values, err := t.Files.Read(ctx, n.view.as(in.Pid, request), n.file())
	if errors.Is(err, secret.ErrNotFound) {
		return 0, errStale // the descriptor's version is no longer served
	}
	if err != nil {
		return 0, err
	}
	defer values.Wipe()
	value, found := values.Get(n.key)
	if !found || len(value) != n.size {
		return 0, fmt.Errorf("reading a key of version %d: %w: %d bytes instead of %d", n.version, secret.ErrTampered, len(value), n.size)
	}
	if in.Offset >= uint64(len(value)) {
		return 0, nil
	}
	return copy(buffer, value[in.Offset:]), nil
}
