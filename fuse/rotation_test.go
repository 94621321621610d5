// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestANewVersionIsANewFile(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "first", "username", "app")
	u := m.user(1001)
	file := m.self("db/creds/password")
	var before, after Attributes
	u.expect("Read", file, "first", 0)
	u.expect("Open", OpenArguments{Path: file, As: 1}, "", 0)
	u.call("Stat", file, &before)

	m.put("db/creds", "password", "the second")
	u.expect("Read", file, "the second", 0)
	u.expect("Read", m.self("db/creds/username"), "", unix.ENOENT)
	u.expect("List", m.self("db/creds"), "password", 0)
	u.call("Stat", file, &after)
	if before.Inode == after.Inode || before.Size != 5 || after.Size != 10 {
		t.Errorf("before %s, after %s", text(before), text(after))
	}
	u.expect("ReadOpen", 1, "first", 0)

	m.call("Delete", "db/creds", nil)
	m.settle()
	u.expect("Read", file, "first", 0)
	u.expect("ReadOpen", 1, "first", 0)
}

func TestASupersededFileOpensForAWhileAndThenIsStale(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "first")
	u := m.user(1001)
	u.expect("Open", OpenArguments{Path: m.self("db/creds/password"), As: 1}, "", 0)
	m.put("db/creds", "password", "second")
	u.expect("Reopen", 1, "first", 0)
	m.call("Advance", 2*time.Second, nil)
	u.expect("Reopen", 1, "", unix.ESTALE)
	u.expect("ReadOpen", 1, "first", 0)
	u.expect("Read", m.self("db/creds/password"), "second", 0)

	m.call("Delete", "db/creds", nil) // the first one is current again
	m.settle()
	u.expect("Reopen", 1, "first", 0)
}

func TestRevokingReachesOpenDescriptors(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	u, other := m.user(1001), m.user(1002)
	file := m.self("db/creds/password")
	for _, p := range []*process{u, other} {
		p.expect("Open", OpenArguments{Path: file, As: 1}, "", 0)
		p.expect("ReadOpen", 1, "hunter2", 0)
	}
	m.call("Forbid", RuleArguments{UID: 1001, Path: "db/creds", On: true}, nil)
	m.settle()
	u.expect("ReadOpen", 1, "", unix.EACCES)
	u.expect("Read", file, "", unix.EACCES)
	u.expect("List", m.self("db/creds"), "password", 0)
	other.expect("ReadOpen", 1, "hunter2", 0)
	u.expect("ReadOpen", 1, "", unix.EACCES) // not what the other one read

	m.call("Forbid", RuleArguments{UID: 1001, Path: "db/creds"}, nil)
	m.settle()
	u.expect("ReadOpen", 1, "hunter2", 0)
	u.expect("Read", file, "hunter2", 0)
}

func TestWhatIsNoLongerServedIsGoneForOpenDescriptorsToo(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "first")
	m.put("hidden", "key", "value")
	u := m.user(1001)
	u.expect("Open", OpenArguments{Path: m.self("db/creds/password"), As: 1}, "", 0)
	u.expect("ReadOpen", 1, "first", 0)
	u.expect("Open", OpenArguments{Path: m.self("hidden/key"), As: 2}, "", 0)
	u.expect("ReadOpen", 2, "value", 0)

	m.call("Hide", RuleArguments{UID: 1001, Path: "hidden", On: true}, nil)
	m.settle()
	u.expect("List", m.self(""), "db", 0)
	u.expect("Read", m.self("hidden/key"), "", unix.ENOENT)
	u.expect("ReadOpen", 2, "", unix.ESTALE)

	m.call("Delete", "db/creds", nil)
	m.settle()
	u.expect("ReadOpen", 1, "", unix.ESTALE)
	u.expect("List", m.self("db/creds"), "", 0)

	u.expect("Open", OpenArguments{Path: m.self("db/creds"), Flags: unix.O_DIRECTORY, As: 3}, "", 0)
	m.call("Purge", "db/creds", nil)
	m.settle()
	u.expect("List", m.self("db"), "", unix.ENOENT)

	m.put("db/creds", "password", "first") // another secret, whatever it is called
	u.expect("Read", m.self("db/creds/password"), "first", 0)
	u.expect("ReadOpen", 1, "", unix.ESTALE)
	u.expect("ReadIn", 3, "", unix.ESTALE)
}

func TestALookupThatAChangeOvertakesIsNotKept(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "first")
	u := m.user(1001)
	u.expect("List", m.self("db/creds"), "password", 0)
	m.call("HoldLook", "db/creds", nil)
	var got Result
	reading := u.client.Go("Part.Read", m.self("db/creds/password"), &got, nil)
	m.call("AwaitLook", nil, nil)
	m.put("db/creds", "password", "second") // and the kernel knows of no file yet
	m.call("ReleaseLook", nil, nil)
	if call := <-reading.Done; call.Error != nil || got.Errno != 0 {
		t.Fatal(got, call.Error)
	}
	u.expect("Read", m.self("db/creds/password"), "second", 0)
}

func TestASecretMayBecomeAFolderAndBack(t *testing.T) {
	m := mount(t)
	u := m.user(1001)
	for range 2 {
		m.put("db", "key", "secret")
		u.expect("Read", m.self("db/key"), "secret", 0)
		m.call("Purge", "db", nil)
		m.put("db/creds", "key", "in a folder")
		u.expect("Read", m.self("db/key"), "", unix.ENOENT)
		u.expect("Read", m.self("db/creds/key"), "in a folder", 0)
		m.call("Purge", "db/creds", nil)
	}
}

func TestWithoutAFeedNothingIsOutOfDate(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "first")
	u := m.user(1001)
	u.expect("Read", m.self("db/creds/password"), "first", 0)
	m.call("EndFeed", nil, nil)
	m.call("Put", PutArguments{"db/creds", map[string]string{"password": "second"}}, nil)
	m.until("the new version is read", func() bool {
		var got Result
		u.call("Read", m.self("db/creds/password"), &got)
		return got.Data == "second"
	})
	m.call("Put", PutArguments{"db/creds", map[string]string{"password": "third"}}, nil)
	u.expect("Read", m.self("db/creds/password"), "third", 0)
}

func TestReadersSeeNoTornAndNoOlderVersion(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", contentOf(1))
	u := m.user(1001)
	var seen Watched
	watching := u.client.Go("Part.Watch", ManyArguments{m.self("db/creds/password"), 4}, &seen, nil)
	for version := 2; version <= 400; version++ {
		m.call("Put", PutArguments{"db/creds", map[string]string{"password": contentOf(version)}}, nil)
	}
	m.settle()
	u.call("StopWatching", nil, nil)
	if call := <-watching.Done; call.Error != nil {
		t.Fatal(call.Error)
	}
	t.Logf("%s", text(seen))
	if seen.Torn != 0 || seen.Backwards != 0 || len(seen.Errors) != 0 || seen.Reads == 0 {
		t.Errorf("while it was rotated, readers saw %s", text(seen))
	}
}

func TestOneProcessorIsEnough(t *testing.T) {
	requireMount(t)
	t.Setenv("GOMAXPROCS", "1")
	m := mount(t)
	m.put("db/creds", "password", contentOf(1))
	u := m.user(1001)
	var seen Watched
	watching := u.client.Go("Part.Watch", ManyArguments{m.self("db/creds/password"), 4}, &seen, nil)
	for version := 2; version <= 50; version++ {
		m.put("db/creds", "password", contentOf(version))
	}
	u.call("StopWatching", nil, nil)
	if call := <-watching.Done; call.Error != nil || seen.Torn+seen.Backwards+len(seen.Errors) != 0 {
		t.Errorf("%s, %v", text(seen), call.Error)
	}
}

func TestWhatTheKernelForgetsIsForgotten(t *testing.T) {
	m := mount(t)
	m.put("keep", "key", "value")
	u := m.user(1001)
	u.expect("Read", m.self("keep/key"), "value", 0)
	base := m.stats().Nodes
	const count = 50
	for i := range count {
		path := fmt.Sprintf("folder%d/secret", i)
		m.put(path, "key", "value")
		u.expect("Read", m.self(path+"/key"), "value", 0)
	}
	if nodes := m.stats().Nodes; nodes != base+3*count {
		t.Errorf("%d nodes, want %d", nodes, base+3*count)
	}
	for i := range count {
		m.call("Purge", fmt.Sprintf("folder%d/secret", i), nil)
	}
	m.settle()
	m.until("all nodes are forgotten", func() bool { return m.stats().Nodes == base })
}

func TestIdleViewsAreForgottenAndTooManyReplaced(t *testing.T) {
	m := mount(t, func(s *Settings) { s.MaxViews, s.Idle = 3, time.Minute })
	m.put("db/creds", "password", "hunter2")
	self := filepath.Join(m.Dir, "self")
	var first, link Result
	stays := m.user(1001)
	stays.call("Readlink", self, &first)
	stays.expect("Open", OpenArguments{Path: m.self("db"), Flags: unix.O_PATH, As: 1}, "", 0) // the kernel refers to it
	for uid := uint32(1002); uid < 1008; uid++ {
		m.user(uid).call("Readlink", self, &link) // and looks no further
		if views := m.stats().Views; views > 3 {
			t.Fatalf("%d views", views)
		}
	}
	m.call("Advance", 2*time.Minute, nil)
	m.user(1010).call("Readlink", self, &link)
	if views := m.stats().Views; views != 2 {
		t.Errorf("%d views, want those of 1001, which is referred to, and of 1010", views)
	}
	stays.expect("Open", OpenArguments{Path: m.self("db/creds/password"), As: 2}, "", 0)
	stays.expect("ReadOpen", 2, "hunter2", 0)
	for uid := uint32(1011); uid < 1015; uid++ { // views that are all referred to
		m.user(uid).expect("Read", m.self("db/creds/password"), "hunter2", 0)
	}
	m.until("the content of a forgotten view leaves the cache", func() bool {
		var got Result
		stays.call("ReadOpen", 2, &got)
		return got == Result{Errno: unix.ESTALE}
	})
	stays.expect("Read", m.self("db/creds/password"), "hunter2", 0)
	stays.call("Readlink", self, &link)
	if link != first {
		t.Errorf("the view made again is called %v, before %v", link, first)
	}
}
