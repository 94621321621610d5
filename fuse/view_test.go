// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/fuse"
)

// expect makes a call that returns a result, and compares it.
func (p *process) expect(method string, arguments any, data string, errno syscall.Errno) {
	p.t.Helper()
	var got Result
	p.call(method, arguments, &got)
	if got.Errno != errno || got.Data != data {
		p.t.Errorf("%s(%s) = %q, %v; want %q, %v", method, text(arguments), got.Data, got.Errno, data, errno)
	}
}

func TestAUserReadsItsSecretsAsFiles(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2\n", "username", "app")
	m.put("top", "key", "")
	u := m.user(1001)
	u.expect("Read", m.self("db/creds/password"), "hunter2\n", 0)
	u.expect("Read", m.self("db/creds/username"), "app", 0)
	u.expect("Read", m.self("top/key"), "", 0)
	u.expect("List", m.self(""), "db top", 0)
	u.expect("List", m.self("db"), "creds", 0)
	u.expect("List", m.self("db/creds"), "password username", 0)
	u.expect("List", m.Dir, "self v", 0)
	u.expect("Read", m.self("db/creds/absent"), "", unix.ENOENT)
	u.expect("Read", m.self("absent"), "", unix.ENOENT)
	u.expect("Read", m.self("db/..creds"), "", unix.ENOENT)
	u.expect("Read", m.self("db/sp ace"), "", unix.ENOENT)
	u.expect("Read", filepath.Join(m.Dir, ".go-fuse-epoll-hack"), "", unix.ENOENT)
	u.expect("Readlink", m.SelfLink, "fs/self/", 0)
}

func TestAViewPassesTheStandardLibrarysCheck(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2", "username", "app")
	m.put("db/other", "key", strings.Repeat("0123456789abcdef", 40_000))
	m.put("web", "tls.crt", "certificate", "tls.key", "key")
	m.user(1001).call("TestFS", TestFSArguments{
		m.self(""), []string{"db/creds/password", "db/creds/username", "db/other/key", "web/tls.crt", "web/tls.key"},
	}, nil)
}

func TestALargeValueArrivesWhole(t *testing.T) {
	m := mount(t)
	large := strings.Repeat("0123456789abcde\n", 1<<16-1)
	m.put("large", "value", large)
	m.user(1001).expect("Read", m.self("large/value"), large, 0)
	// Each request costs opening the sealed record, so they must not be small.
	if reads := m.stats().Requests[opRead]; reads < 8 || reads > 16 {
		t.Errorf("1 MiB took %d requests", reads)
	}
}

func TestAttributesSayWhoseFileItIs(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	u := m.user(1001)
	for _, c := range []struct {
		path string
		mode uint32
		size int64
		uid  uint32
	}{
		{m.self("db/creds/password"), unix.S_IFREG | 0o400, 7, 1001},
		{m.self("db/creds"), unix.S_IFDIR | 0o500, 0, 1001},
		{m.self("db"), unix.S_IFDIR | 0o500, 0, 1001},
		{m.SelfLink + "/.", unix.S_IFDIR | 0o500, 0, 1001},
		{filepath.Join(m.Dir, "v"), unix.S_IFDIR | 0o111, 0, 0},
		{filepath.Join(m.Dir, "self"), unix.S_IFLNK | 0o777, 34, 0},
	} {
		var got Attributes
		u.call("Stat", c.path, &got)
		if got.Mode != c.mode || got.Size != c.size || got.UID != c.uid || got.GID != c.uid {
			t.Errorf("%s: %s; want mode %o, size %d, uid %d", c.path, text(got), c.mode, c.size, c.uid)
		}
		if got.Inode == 0 || got.Links != 1 || got.Free != 0 || got.NameLength != 253 {
			t.Errorf("%s: %s", c.path, text(got))
		}
	}
	var got Attributes
	u.call("Stat", m.self("db/creds/password"), &got)
	if got.Modified != 1_700_000_000 {
		t.Errorf("modified at %d, not when the version was written", got.Modified)
	}
}

func TestSelfLeadsEachUserToItsOwnView(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	m.call("Hide", RuleArguments{UID: 1002, Path: "db/creds", On: true}, nil)
	self := filepath.Join(m.Dir, "self")
	views := map[string]bool{}
	for _, uid := range []uint32{0, 1001, 1002} {
		var first, second Result
		u := m.user(uid)
		u.call("Readlink", self, &first)
		u.call("Readlink", self, &second)
		if first != second || !strings.HasPrefix(first.Data, "v/") || len(first.Data) != 34 {
			t.Errorf("uid %d is led to %v and then to %v", uid, first, second)
		}
		views[first.Data] = true
	}
	if len(views) != 3 {
		t.Errorf("three users share views: %v", views)
	}
	m.user(1002).expect("Read", m.self("db/creds/password"), "", unix.ENOENT)
	m.user(1002).expect("List", m.self(""), "", 0)
	m.user(1001).expect("Read", m.self("db/creds/password"), "hunter2", 0)
}

func TestNobodyElseEntersAView(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	var link Result
	m.user(1001).call("Readlink", filepath.Join(m.Dir, "self"), &link)
	view := filepath.Join(m.Dir, link.Data)
	other := m.user(1002)
	other.expect("Read", filepath.Join(view, "db/creds/password"), "", unix.EACCES)
	other.expect("List", view, "", unix.EACCES)
	other.expect("List", filepath.Join(view, "db"), "", unix.EACCES)
	other.expect("List", filepath.Join(m.Dir, "v"), "", unix.EACCES)
	other.expect("Read", filepath.Join(m.Dir, "v", strings.Repeat("0", 32)), "", unix.ENOENT)
}

func TestAnotherIdentityReadsThroughAViewOnlyWhatBothMay(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	m.put("web", "key", "k")
	var link Result
	m.user(1001).call("Readlink", filepath.Join(m.Dir, "self"), &link)
	view := filepath.Join(m.Dir, link.Data)
	root := m.user(0) // modes do not stop it, so only the authorization of each open does
	root.expect("Read", filepath.Join(view, "db/creds/password"), "hunter2", 0)
	m.call("Forbid", RuleArguments{UID: 0, Path: "db/creds", On: true}, nil)
	root.expect("Read", filepath.Join(view, "db/creds/password"), "", unix.EACCES)
	m.call("Forbid", RuleArguments{UID: 0, Path: "db/creds"}, nil)
	m.call("Forbid", RuleArguments{UID: 1001, Path: "db/creds", On: true}, nil)
	root.expect("Open", OpenArguments{Path: filepath.Join(view, "db/creds/password")}, "", unix.EACCES)
	m.call("Hide", RuleArguments{UID: 0, Path: "web", On: true}, nil)
	root.expect("Read", filepath.Join(view, "web/key"), "", unix.ENOENT)
	root.expect("List", filepath.Join(m.Dir, "v"), "", unix.EACCES)
}

func TestTheAgentsOwnMountIsClosedToOthers(t *testing.T) {
	m := mount(t)
	m.user(0).expect("List", filepath.Join(m.Private, "fs"), "self v", 0)
	m.user(1001).expect("List", filepath.Join(m.Private, "fs"), "", unix.EACCES)
}

// stats asks the daemon how busy it is.
func (m *mounted) stats() (stats fuse.Stats) {
	m.t.Helper()
	m.call("Stats", nil, &stats)
	return stats
}

// until waits for what happens on its own.
func (m *mounted) until(what string, condition func() bool) {
	m.t.Helper()
	ctx, cancel := background()
	defer cancel()
	for !condition() {
		if ctx.Err() != nil {
			m.t.Fatalf("it did not happen that %s: %s", what, text(m.stats()))
		}
		runtime.Gosched()
	}
}
