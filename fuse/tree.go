// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// cacheFor is how long the kernel may keep names and attributes. Changes are
// told to it when they happen.
const cacheFor = time.Hour

// viewsDir is the folder of the views, as the link self names it.
const viewsDir = "v"

// selfSize is the length of what the link self says: viewsDir, "/" and the
// view's name.
const selfSize = len(viewsDir) + 1 + 32

// tree answers the kernel's requests about names, attributes and bytes. It knows
// nothing of how they arrive.
type tree struct {
	readOnly // and what is not a change is below

	Config
	table     *table
	listings  listings
	waiting   waiting
	uid, gid  uint32    // owner of what belongs to no view
	started   time.Time // time of what never changes
	blind     atomic.Bool
	requests  atomic.Uint64
	requestID string

	// ctx ends when the filesystem closes; requests live in it, because the
	// protocol has no context of its own.
	ctx context.Context
}

func newTree(ctx context.Context, config Config, uid, gid int) *tree {
	var run [4]byte
	_, _ = rand.Read(run[:]) // never fails, by its documentation
	started := config.Now()
	return &tree{
		readOnly:  readOnly{gofuse.NewDefaultRawFileSystem()},
		Config:    config,
		table:     newTable(config.Idle, config.MaxViews, started),
		listings:  newListings(),
		waiting:   newWaiting(maxLoops / 4),
		uid:       uint32(uid),
		gid:       uint32(gid),
		started:   started,
		requestID: hex.EncodeToString(run[:]) + "-",
		ctx:       ctx,
	}
}

// String names the filesystem in go-fuse's messages.
func (t *tree) String() string { return "keyhole" }

// request returns the ID of one request: unique in this run, and unlike those
// of other runs.
func (t *tree) request() string {
	var buffer [32]byte
	text := append(buffer[:0], t.requestID...)
	return string(strconv.AppendUint(text, t.requests.Add(1), 36))
}

// status translates err and keeps its text for the operator: the caller sees
// only an errno. Paths are in such texts, so they are at debug level but for
// those that nobody expects.
func (t *tree) status(operation, request string, err error) gofuse.Status {
	status := errnoOf(err)
	if status != gofuse.OK {
		t.Logger.Debug("filesystem request failed", "operation", operation, "request", request, "errno", status.String(), "error", err)
	}
	return status
}

// panicked is called by go-fuse when a handler panicked. The value may carry
// anything, so only its type is logged.
func (t *tree) panicked(value any) gofuse.Status {
	detail := fmt.Sprintf("%T", value)
	if err, ok := value.(error); ok {
		detail = err.Error()
	}
	t.Logger.Error("a filesystem request panicked", "value", detail, "stack", string(debug.Stack()))
	return gofuse.EIO
}

// Lookup tells the kernel of a name. It neither identifies nor waits: what there
// is to see in a view depends on the view alone.
func (t *tree) Lookup(_ <-chan struct{}, header *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	request := t.request()
	n, cacheable, err := t.lookup(header, request, name)
	if err != nil {
		return t.status("lookup", request, err)
	}
	out.NodeId = n.id
	t.attributes(n, &out.Attr)
	if cacheable && !t.blind.Load() {
		out.SetEntryTimeout(cacheFor)
		out.SetAttrTimeout(cacheFor)
	}
	return gofuse.OK
}

func (t *tree) lookup(header *gofuse.InHeader, request, name string) (n *node, cacheable bool, err error) {
	parent, err := t.table.node(header.NodeId)
	if err != nil {
		return nil, false, err
	}
	switch parent.kind {
	case rootFolder:
		switch name {
		case "self":
			n, err = t.table.node(selfID)
		case viewsDir:
			n, err = t.table.node(viewsID)
		default:
			err = secret.ErrNotFound
		}
		return n, true, err
	case viewsFolder:
		n, err = t.table.viewNamed(name, t.Now())
		return n, true, err
	case folder:
		return t.lookupPath(parent, header.Pid, request, name)
	case secretDir:
		return t.lookupKey(parent, header.Pid, request, name)
	}
	return nil, false, secret.ErrNotFound
}

// lookupPath finds a folder or a secret in a folder.
func (t *tree) lookupPath(parent *node, thread uint32, request, name string) (*node, bool, error) {
	path, err := parent.path.Child(name)
	if err != nil {
		return nil, false, err
	}
	seen := t.table.generation.Load()
	entry, info, err := t.Names.Look(t.ctx, parent.view.as(thread, request), path)
	if err != nil {
		return nil, false, err
	}
	want := &node{identifier: identifier{view: parent.view.name, kind: folder, path: path}, parent: parent.id, view: parent.view}
	changed := t.started
	if !entry.Folder {
		want.kind, want.secret = secretDir, info.ID
		changed = info.Updated
	}
	n, cacheable, err := t.table.told(want, seen)
	if err == nil {
		n.changed.Store(changed.UnixNano())
		n.restore(info.Revision)
	}
	return n, cacheable, err
}

// lookupKey finds the current version of a key in a secret.
func (t *tree) lookupKey(parent *node, thread uint32, request, name string) (*node, bool, error) {
	key, err := secret.ParseKey(name)
	if err != nil {
		return nil, false, err
	}
	seen := t.table.generation.Load()
	info, err := t.describe(parent, thread, request)
	if err != nil {
		return nil, false, err
	}
	size, found := sizeOf(info, key)
	if !found {
		return nil, false, secret.ErrNotFound
	}
	want := &node{
		identifier: identifier{
			view: parent.view.name, kind: file, path: parent.path,
			secret: info.ID, key: key, version: info.Current,
		},
		parent: parent.id, view: parent.view, size: size,
	}
	want.changed.Store(created(info).UnixNano())
	n, cacheable, err := t.table.told(want, seen)
	if err == nil {
		n.restore(info.Revision)
	}
	return n, cacheable, err
}

// describe returns what the view may know of the secret behind a node, or
// errStale when another secret has its path now.
func (t *tree) describe(n *node, thread uint32, request string) (secret.Info, error) {
	entry, info, err := t.Names.Look(t.ctx, n.view.as(thread, request), n.path)
	if err == nil && (entry.Folder || info.ID != n.secret) {
		err = errStale
	}
	return info, err
}

func sizeOf(info secret.Info, key secret.Key) (size int, found bool) {
	for _, k := range info.Keys {
		if k.Key == key {
			return k.Size, true
		}
	}
	return 0, false
}

// created returns when the current version was written.
func created(info secret.Info) time.Time {
	for _, v := range slices.Backward(info.Versions) {
		if v.Version == info.Current {
			return v.Created
		}
	}
	return info.Updated
}

// Forget takes back what the kernel no longer refers to.
func (t *tree) Forget(id, count uint64) { t.table.forget(id, count) }

// GetAttr answers from what the node is; only a secret's directory changes, and
// when it cannot be asked about, its last known time is good enough.
func (t *tree) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	n, err := t.table.node(in.NodeId)
	if err != nil {
		return t.status("getattr", "", err)
	}
	if n.kind == secretDir {
		request := t.request()
		if info, err := t.describe(n, in.Pid, request); err == nil {
			n.changed.Store(info.Updated.UnixNano())
		} else {
			t.status("getattr", request, err)
		}
	}
	t.attributes(n, &out.Attr)
	if !t.blind.Load() {
		out.SetTimeout(cacheFor)
	}
	return gofuse.OK
}

// attributes says what a node looks like. A directory's link count is 1, which
// tells programs that it does not count folders (find relies on others).
func (t *tree) attributes(n *node, out *gofuse.Attr) {
	out.Ino, out.Nlink, out.Blksize = n.id, 1, 4096
	out.Uid, out.Gid = t.uid, t.gid
	if n.view != nil {
		out.Uid, out.Gid = n.view.key.uid, n.view.key.gid
	}
	switch n.kind {
	case rootFolder:
		out.Mode = gofuse.S_IFDIR | 0o555
	case viewsFolder:
		out.Mode = gofuse.S_IFDIR | 0o111
	case selfLink:
		out.Mode, out.Size = gofuse.S_IFLNK|0o777, uint64(selfSize)
	case folder, secretDir:
		out.Mode = gofuse.S_IFDIR | 0o500
	case file:
		out.Mode, out.Size = gofuse.S_IFREG|0o400, uint64(n.size)
		out.Blocks = (out.Size + 511) / 512
	}
	changed := time.Unix(0, n.changed.Load())
	out.SetTimes(&changed, &changed, &changed)
}

// StatFs says that there is nothing to be had: no free blocks, no free inodes.
func (t *tree) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	out.Bsize, out.Frsize, out.NameLen = 4096, 4096, secret.MaxSegmentBytes
	return gofuse.OK
}

var _ gofuse.RawFileSystem = (*tree)(nil)

// caller makes sure that a thread is identified, and that a refusal is audited.
func (t *tree) caller(ctx context.Context, header *gofuse.InHeader, operation, request string) (identity.Caller, error) {
	if !t.waiting.enter(header.Uid) {
		return identity.Caller{}, fmt.Errorf("%w: too many callers of uid %d wait to be identified", secret.ErrLimited, header.Uid)
	}
	defer t.waiting.leave(header.Uid)
	caller, err := t.Threads.Thread(ctx, header.Pid)
	caller.Request = request
	if err == nil && len(caller.IDs) == 0 {
		err = fmt.Errorf("%w: the process has no SPIFFE ID", secret.ErrDenied)
	}
	if err == nil {
		return caller, nil
	}
	auditing, cancel := context.WithTimeout(t.ctx, t.Deadline)
	defer cancel()
	if auditErr := t.Refusals.Refuse(auditing, caller, operation, err); auditErr != nil {
		t.Logger.Error("a refusal could not be audited", "operation", operation, "request", request, "error", auditErr)
	}
	return caller, err
}
