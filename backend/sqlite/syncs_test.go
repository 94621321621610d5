// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

// syncs counts what the whole process asks the kernel to sync, with a seccomp
// filter that reports each fsync and fdatasync before it happens. That is what
// SQLite really does, whatever its settings say. See seccomp_unotify(2).
type syncs struct {
	count   atomic.Int64
	fail    atomic.Bool       // answer EIO instead of syncing
	inspect func(path string) // called with each file before it is synced
}

// The two structures of linux/seccomp.h that the kernel and a listener exchange.
type (
	notification struct {
		id           uint64
		pid, flags   uint32
		call         int32
		architecture uint32
		instruction  uint64
		arguments    [6]uint64
	}
	response struct {
		id    uint64
		value int64
		error int32
		flags uint32
	}
)

// countSyncs filters the process until it ends, so it is for children only.
func countSyncs(t *testing.T, inspect func(path string)) *syncs {
	t.Helper()
	load := unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS} // the call's number
	equal := func(call uint32, then uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jt: then}
	}
	answer := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	filter := []unix.SockFilter{
		load, equal(unix.SYS_FSYNC, 2), equal(unix.SYS_FDATASYNC, 1),
		answer(unix.SECCOMP_RET_ALLOW), answer(unix.SECCOMP_RET_USER_NOTIF),
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH)
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		t.Skipf("this machine lets nobody listen to system calls: %v", errno)
	}
	s := &syncs{inspect: inspect}
	go s.listen(listener) // until the process ends
	return s
}

func (s *syncs) listen(listener uintptr) {
	for {
		var n notification
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, listener, unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n)))
		if errno == unix.EINTR || errno == unix.ENOENT { // a signal, or the caller is gone
			continue
		}
		if errno != 0 {
			return
		}
		s.count.Add(1)
		if s.inspect != nil {
			path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", n.arguments[0]))
			if err != nil {
				path = err.Error()
			}
			s.inspect(path)
		}
		r := response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if s.fail.Load() {
			r.error, r.flags = -int32(unix.EIO), 0
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, listener, unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	}
}

// during returns how many syncs do makes.
func (s *syncs) during(do func()) int64 {
	before := s.count.Load()
	do()
	return s.count.Load() - before
}

func TestACommitOfManyBatchesIsOneSync(t *testing.T) {
	if !inChild(t, &syscall.SysProcAttr{}) {
		return
	}
	s := countSyncs(t, nil)
	b := openStore(t, newPath(t))
	if s.count.Load() == 0 {
		t.Fatal("a store was made without a sync; is the filter there?")
	}
	mustCommit(t, b, putting("first", nil)) // the first one also syncs the new WAL's header
	const commits, each = 20, 16
	n := 0
	got := s.during(func() {
		for range commits {
			var batches []backend.Batch
			for range each {
				batch := putting(fmt.Sprint(n), bytes.Repeat([]byte("x"), 100))
				batch.ID = [16]byte{1, byte(n), byte(n >> 8)}
				batches = append(batches, batch)
				n++
			}
			mustCommit(t, b, batches...)
		}
	})
	if got != commits {
		t.Errorf("%d commits of %d batches made %d syncs", commits, each, got)
	}
	conflict := putting("0", nil)
	conflict.If = []backend.Cond{{Key: secretKey("0")}}
	replay := putting("0", nil)
	replay.ID = [16]byte{1, 0, 0}
	if got := s.during(func() { mustCommit(t, b, conflict, replay) }); got != 0 {
		t.Errorf("a commit that applied nothing made %d syncs", got)
	}
	reads := s.during(func() {
		exists(t, b, "0")
		if err := b.Health(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if reads != 0 {
		t.Errorf("reading made %d syncs", reads)
	}
}

func TestAFailingSyncFailsTheCommit(t *testing.T) {
	if !inChild(t, &syscall.SysProcAttr{}) {
		return
	}
	s := countSyncs(t, nil)
	b := openStore(t, newPath(t))
	mustCommit(t, b, putting("before", nil))
	s.fail.Store(true)
	if _, err := b.Commit(t.Context(), []backend.Batch{putting("failed", nil)}); !errors.Is(err, secret.ErrUnavailable) {
		t.Errorf("Commit: %v", err)
	}
	if err := b.Health(t.Context()); !errors.Is(err, secret.ErrUnavailable) {
		t.Errorf("Health: %v", err)
	}
	if exists(t, b, "failed") || !exists(t, b, "before") {
		t.Error("a commit that failed is visible, or another is not")
	}
	s.fail.Store(false)
	if err := b.Health(t.Context()); err != nil {
		t.Errorf("Health: %v", err)
	}
	mustCommit(t, b, putting("after", nil))
	if exists(t, b, "failed") {
		t.Error("a commit that failed is visible")
	}
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// What a killed process left in the WAL may not be synced; it is before anybody
// can see it.
func TestWhatIsRecoveredIsSynced(t *testing.T) {
	if !inChild(t, &syscall.SysProcAttr{}) {
		return
	}
	from := newPath(t)
	b := openStore(t, from)
	mustCommit(t, b, putting("a", nil))
	to := copyStore(t, from)
	wal, err := os.ReadFile(from + "-wal")
	if err == nil {
		err = os.WriteFile(to+"-wal", wal, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := countSyncs(t, nil)
	s.fail.Store(true)
	if _, err := Open(Config{Path: to}); !errors.Is(err, secret.ErrUnavailable) {
		t.Errorf("Open without a working sync: %v", err)
	}
	s.fail.Store(false)
	if recovered := openStore(t, to); !exists(t, recovered, "a") {
		t.Error("a batch in the WAL is not in the store")
	}
}

// Of a new store, the folder's parent, the file and the name of the file must
// be durable, in this order.
func TestANewStoreIsSynced(t *testing.T) {
	if !inChild(t, &syscall.SysProcAttr{}) {
		return
	}
	path := newPath(t)
	folder := filepath.Dir(path)
	var mu sync.Mutex
	var order []string
	s := countSyncs(t, func(synced string) {
		_, err := os.Stat(path)
		mu.Lock()
		defer mu.Unlock()
		order = append(order, fmt.Sprintf("%s (store there: %v)", strings.TrimPrefix(synced, filepath.Dir(folder)), err == nil))
	})
	s.fail.Store(true)
	if _, err := Open(Config{Path: path}); err == nil {
		t.Error("a store was made without a working sync")
	}
	s.fail.Store(false)
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	order = nil
	mu.Unlock()
	openStore(t, path)
	mu.Lock()
	defer mu.Unlock()
	// SQLite itself syncs the folder again once there is a WAL; that is too late.
	end := slices.IndexFunc(order, func(s string) bool { return strings.HasPrefix(s, "/store/keyhole.db-wal") })
	at := 0
	for _, want := range []string{" (store there: false)", "/store/keyhole.db.new (store there: false)", "/store (store there: true)"} {
		next := slices.Index(order[at:max(at, end)], want)
		if next < 0 {
			t.Fatalf("%q was not synced, or not in time: %q", want, order)
		}
		at += next
	}
}
