// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"errors"
	"net/rpc"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

func TestAFailureToOpenHasItsErrno(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	u := m.user(1001)
	u.expect("Read", m.self("db/creds/password"), "hunter2", 0)
	for _, c := range []struct {
		err   error
		errno syscall.Errno
	}{
		{secret.ErrDenied, unix.EACCES},
		{secret.ErrUnauthenticated, unix.EACCES},
		{secret.ErrNotFound, unix.ENOENT},
		{secret.ErrExpired, unix.EKEYEXPIRED},
		{secret.ErrUnavailable, unix.EIO},
		{secret.ErrSealed, unix.EIO},
		{secret.ErrTampered, unix.EIO},
		{secret.ErrLimited, unix.EAGAIN},
		{errors.New("something new"), unix.EIO},
	} {
		m.call("Fail", RuleArguments{Path: "db/creds", Error: c.err.Error()}, nil)
		u.expect("Read", m.self("db/creds/password"), "", c.errno)
	}
	m.call("Fail", RuleArguments{Path: "db/creds"}, nil)
	u.expect("Read", m.self("db/creds/password"), "hunter2", 0)
}

func TestWhoCannotBeIdentifiedIsRefusedAndAudited(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	u := m.user(1001)
	var link Result
	u.call("Readlink", filepath.Join(m.Dir, "self"), &link)
	file := filepath.Join(m.Dir, link.Data, "db/creds/password")
	for _, c := range []struct {
		err   error
		errno syscall.Errno
	}{
		{secret.ErrDenied, unix.EACCES},
		{secret.ErrUnavailable, unix.EIO},
		{errNobody, unix.EACCES},
	} {
		m.call("FailUser", RuleArguments{UID: 1001, Error: c.err.Error()}, nil)
		u.expect("Readlink", filepath.Join(m.Dir, "self"), "", c.errno)
		u.expect("Read", file, "", c.errno)
		var refused []string
		m.call("Refused", nil, &refused)
		for _, operation := range []string{"self: ", "open: "} {
			if !slices.ContainsFunc(refused, func(r string) bool {
				return strings.HasPrefix(r, operation) && (strings.HasSuffix(r, c.err.Error()) || errors.Is(c.err, errNobody) && strings.HasSuffix(r, "no SPIFFE ID"))
			}) {
				t.Errorf("no refusal of %s with %v among %q", operation, c.err, refused)
			}
		}
	}
}

func TestACallerWhoTakesTooLongIsRefused(t *testing.T) {
	m := mount(t, func(s *Settings) { s.Deadline = time.Millisecond })
	m.call("Hold", uint32(1001), nil)
	m.user(1001).expect("Readlink", filepath.Join(m.Dir, "self"), "", unix.EIO)
	var refused []string
	m.call("Refused", nil, &refused)
	if len(refused) != 1 {
		t.Errorf("refusals: %q", refused)
	}
}

func TestACallerWhoWaitsDelaysNobodyElse(t *testing.T) {
	m := mount(t, func(s *Settings) { s.Deadline = time.Minute })
	m.put("db/creds", "password", "hunter2")
	slow, quick := m.user(1001), m.user(1002)
	slow.expect("Read", m.self("db/creds/password"), "hunter2", 0)
	m.call("Hold", uint32(1001), nil)
	const many = 100 // more than there are loops to begin with
	answers := map[syscall.Errno]int{}
	waiting := slow.client.Go("Part.ReadlinkMany", ManyArguments{filepath.Join(m.Dir, "self"), many}, &answers, nil)
	m.call("Await", RuleArguments{UID: 1001, Count: many}, nil)

	quick.expect("Read", m.self("db/creds/password"), "hunter2", 0)
	quick.expect("List", m.self("db"), "creds", 0)
	m.put("db/creds", "password", "hunter3")
	quick.expect("Read", m.self("db/creds/password"), "hunter3", 0)

	m.call("Release", uint32(1001), nil)
	if call := <-waiting.Done; call.Error != nil || answers[0] != many {
		t.Errorf("those who waited got %v, %v", answers, call.Error)
	}
}

func TestOneUserCannotTakeAllPlaces(t *testing.T) {
	m := mount(t, func(s *Settings) { s.Deadline = time.Minute })
	m.put("db/creds", "password", "hunter2")
	greedy := m.user(1001)
	m.call("Hold", uint32(1001), nil)
	const limit = 250
	answers := map[syscall.Errno]int{}
	waiting := greedy.client.Go("Part.ReadlinkMany", ManyArguments{filepath.Join(m.Dir, "self"), limit}, &answers, nil)
	m.call("Await", RuleArguments{UID: 1001, Count: limit}, nil)
	greedy.expect("Readlink", filepath.Join(m.Dir, "self"), "", unix.EAGAIN)
	m.user(1002).expect("Read", m.self("db/creds/password"), "hunter2", 0)
	m.call("Release", uint32(1001), nil)
	if call := <-waiting.Done; call.Error != nil || answers[0] != limit {
		t.Errorf("those who waited got %v, %v", answers, call.Error)
	}
}

func TestThereIsAlwaysOnePlaceForThoseWhoNeedNotWait(t *testing.T) {
	m := mount(t, func(s *Settings) { s.Deadline = time.Minute })
	m.put("db/creds", "password", "hunter2")
	quick := m.user(1000)
	quick.expect("Open", OpenArguments{Path: m.self("db/creds"), Flags: unix.O_DIRECTORY, As: 1}, "", 0)
	self := filepath.Join(m.Dir, "self")
	var waiting []*rpc.Call
	for i, count := range []int{250, 250, 250, 249} { // with the last place, 1,000
		uid := uint32(1001 + i)
		m.call("Hold", uid, nil)
		answers := map[syscall.Errno]int{}
		waiting = append(waiting, m.user(uid).client.Go("Part.ReadlinkMany", ManyArguments{self, count}, &answers, nil))
		m.call("Await", RuleArguments{UID: uid, Count: count}, nil)
	}
	quick.expect("Readlink", self, "", unix.EAGAIN)
	quick.expect("ListOpen", 1, "password", 0)
	for i := range waiting {
		m.call("Release", uint32(1001+i), nil)
		if call := <-waiting[i].Done; call.Error != nil {
			t.Error(call.Error)
		}
	}
	quick.expect("Read", m.self("db/creds/password"), "hunter2", 0)
	m.until("loops end when there is nothing to do", func() bool { return m.stats().Loops < 100 })
}

func TestAPanicIsEIOForOneCaller(t *testing.T) {
	m := mount(t)
	m.put("panic", "key", "value")
	m.put("db/creds", "password", "hunter2")
	u := m.user(1001)
	for range 20 { // more than there are loops
		u.expect("Read", m.self("panic/key"), "", unix.EIO)
	}
	u.expect("Read", m.self("db/creds/password"), "hunter2", 0)
}

func TestWhatWasReadIsWipedFromMemory(t *testing.T) {
	m := mount(t)
	const value = "a value that is nowhere else"
	m.put("db/creds", "password", strings.Repeat(value, 1000))
	u := m.user(1001)
	u.expect("Read", m.self("db/creds/password"), strings.Repeat(value, 1000), 0)
	m.until("the replies are wiped", func() bool {
		var held bool
		m.call("Holds", value, &held)
		return !held
	})
	m.until("the values are wiped", func() bool {
		var unwiped int
		m.call("Unwiped", nil, &unwiped)
		return unwiped == 0
	})
}

func TestNothingCanBeChanged(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	// Modes speak first for the owner; there are none for root, who can also
	// reach the mount that could be written.
	mode := []string{"open for writing", "open read-write", "truncate"}
	for _, c := range []struct {
		name string
		uid  uint32
		dir  string
	}{
		{"the owner", 1001, m.SelfLink},
		{"root", 0, m.SelfLink},
		{"root in the agent's own mount", 0, filepath.Join(m.Private, "fs/self")},
	} {
		var got map[string]syscall.Errno
		u := m.user(c.uid)
		u.call("Change", struct{ File, Dir string }{
			filepath.Join(c.dir, "db/creds/password"), filepath.Join(c.dir, "db/creds"),
		}, &got)
		for what, errno := range got {
			switch {
			case errno == unix.EROFS:
			case errno == unix.EACCES && c.uid != 0 && slices.Contains(mode, what):
			default:
				t.Errorf("%s: %s: %v", c.name, what, errno)
			}
		}
		u.expect("Read", m.self("db/creds/password"), "hunter2", 0)
	}
}

func TestWhatIsNotThereIsSaidSo(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	var got map[string]syscall.Errno
	m.user(1001).call("Ask", m.self("db/creds/password"), &got)
	for what, errno := range map[string]syscall.Errno{
		"getxattr": unix.ENODATA, "listxattr": 0, "fsync": 0, "ioctl": unix.ENOTTY, "seek to data": 0, "poll": 0,
	} {
		if got[what] != errno {
			t.Errorf("%s: %v, want %v", what, got[what], errno)
		}
	}
}

// Operations, as the kernel numbers them.
const (
	opGetattr  = 3
	opReadlink = 5
	opOpen     = 14
	opRead     = 15
	opRelease  = 18
)

func TestAWarmReadTakesAtMostFourRequests(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", strings.Repeat("x", 1024))
	u := m.user(1001)
	read := func(count int) map[int]uint64 {
		before := m.stats()
		var took time.Duration
		u.call("OpenReadClose", struct {
			Path           string
			Count, Readers int
		}{m.self("db/creds/password"), count, 1}, &took)
		after := m.stats()
		for operation, made := range before.Requests {
			after.Requests[operation] -= made
		}
		return after.Requests
	}
	read(2)
	const count = 100
	var total uint64
	got := read(count)
	for _, made := range got {
		total += made
	}
	// The last RELEASE may still be on its way.
	if total > 4*count+1 || got[opReadlink] != count || got[opOpen] != count || got[opGetattr] > count {
		t.Errorf("%d reads took %d requests: %v", count, total, got)
	}
	if got[opRelease]+1 < count {
		t.Errorf("%d of %d files were released", got[opRelease], count)
	}
}
