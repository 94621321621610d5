// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

func callerOf(uid uint32, ids ...string) identity.Caller {
	caller := identity.Caller{Source: identity.Broker, Process: identity.Process{PID: 7, UID: uid, GID: uid}}
	for _, id := range ids {
		caller.IDs = append(caller.IDs, spiffeid.RequireFromString(id))
	}
	return caller
}

func TestAViewBelongsToASetOfIDsAndAnOwner(t *testing.T) {
	now := time.Unix(1, 0)
	table := newTable(time.Minute, 10, now)
	a := table.view(callerOf(1, "spiffe://test/a", "spiffe://test/b"), now)
	if a != table.view(callerOf(1, "spiffe://test/b", "spiffe://test/a"), now) {
		t.Error("the order of the IDs makes another view")
	}
	if a.caller.Process.PID != 0 {
		t.Error("a view has a process of its own")
	}
	seen := map[string]bool{a.name: true}
	for _, other := range []identity.Caller{
		callerOf(2, "spiffe://test/a", "spiffe://test/b"), callerOf(1, "spiffe://test/a"), callerOf(1, "spiffe://test/a/b"),
	} {
		name := table.view(other, now).name
		if seen[name] || len(name) != 32 || strings.Trim(name, "0123456789abcdef") != "" {
			t.Errorf("view %q of %v", name, other.IDs)
		}
		seen[name] = true
	}
	if elsewhere := newTable(time.Minute, 10, now).view(callerOf(1, "spiffe://test/a"), now); seen[elsewhere.name] {
		t.Error("another run gives the same name")
	}
}

func TestANodesNumberDependsOnAllThatItIs(t *testing.T) {
	ids := newIDs()
	base := identifier{
		view: "view", kind: file, path: secret.MustParsePath("a/b"), secret: secret.ID{1}, version: 1,
		key: mustKey(t, "k"),
	}
	seen := map[uint64]string{ids.node(base, 0): "base"}
	for name, change := range map[string]func(*identifier){
		"view":    func(i *identifier) { i.view = "viewx" },
		"kind":    func(i *identifier) { i.kind = folder },
		"path":    func(i *identifier) { i.path = secret.MustParsePath("a") },
		"secret":  func(i *identifier) { i.secret = secret.ID{2} },
		"version": func(i *identifier) { i.version = 2 },
		"key":     func(i *identifier) { i.key = mustKey(t, "l") },
	} {
		other := base
		change(&other)
		number := ids.node(other, 0)
		if before, taken := seen[number]; taken {
			t.Errorf("another %s has the number of %s", name, before)
		}
		seen[number] = name
	}
	first, again := ids.node(base, 0), ids.node(base, 0)
	if first != again || first == ids.node(base, 1) {
		t.Error("numbers are not a function of node and salt")
	}
}

func mustKey(t *testing.T, text string) secret.Key {
	t.Helper()
	key, err := secret.ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestNodesWithTheSameNumberAreToldApart(t *testing.T) {
	now := time.Unix(1, 0)
	table := newTable(time.Minute, 10, now)
	v := table.view(callerOf(1, "spiffe://test/a"), now)
	want := identifier{view: v.name, kind: folder, path: secret.MustParsePath("a")}
	squatter := &node{identifier: identifier{view: v.name, kind: folder, path: secret.MustParsePath("b")}, view: v}
	squatter.id = table.ids.node(want, 0)
	table.nodes[squatter.id] = squatter
	n, _, err := table.told(&node{identifier: want, parent: v.root.id, view: v}, 0)
	if err != nil || n.id == squatter.id || n.identifier != want {
		t.Fatalf("node %v, %v", n, err)
	}
	if again, _, err := table.told(&node{identifier: want, parent: v.root.id, view: v}, 0); err != nil || again != n {
		t.Errorf("the same node has another number: %v, %v", again, err)
	}
}

func TestAnAnswerFromBeforeAChangeIsNotCached(t *testing.T) {
	now := time.Unix(1, 0)
	table := newTable(time.Minute, 10, now)
	v := table.view(callerOf(1, "spiffe://test/a"), now)
	want := identifier{view: v.name, kind: folder, path: secret.MustParsePath("a")}
	seen := table.generation.Load()
	table.generation.Add(1)
	if _, cacheable, err := table.told(&node{identifier: want, view: v}, seen); cacheable || err != nil {
		t.Errorf("cacheable %v, %v", cacheable, err)
	}
	if _, cacheable, err := table.told(&node{identifier: want, view: v}, table.generation.Load()); !cacheable || err != nil {
		t.Errorf("cacheable %v, %v", cacheable, err)
	}
}

func TestForgettingTooMuchDoesNoHarm(t *testing.T) {
	now := time.Unix(1, 0)
	table := newTable(time.Minute, 10, now)
	v := table.view(callerOf(1, "spiffe://test/a"), now)
	_, empty := table.size()
	want := identifier{view: v.name, kind: folder, path: secret.MustParsePath("a")}
	for range 3 {
		if _, _, err := table.told(&node{identifier: want, view: v}, 0); err != nil {
			t.Fatal(err)
		}
	}
	id := table.ids.node(want, 0)
	for _, step := range []struct {
		count uint64
		nodes int
	}{{1, empty + 1}, {5, empty}, {1, empty}} {
		table.forget(id, step.count)
		if _, nodes := table.size(); nodes != step.nodes {
			t.Errorf("after forgetting %d: %d nodes, want %d", step.count, nodes, step.nodes)
		}
	}
	for _, fixed := range []uint64{rootID, selfID, viewsID, v.root.id} {
		table.forget(fixed, 1)
		if _, err := table.node(fixed); err != nil {
			t.Errorf("node %d was forgotten", fixed)
		}
	}
	if len(v.paths) != 0 || v.known != 0 {
		t.Errorf("%d paths, %d known", len(v.paths), v.known)
	}
}

func TestOnlyANewerRecordMakesASupersededNodeCurrent(t *testing.T) {
	n := &node{}
	now := time.Unix(100, 0)
	if !n.supersede(now.Add(time.Second), 5) || n.supersede(now.Add(time.Hour), 5) {
		t.Error("superseding is not reported once")
	}
	if n.restore(4); !n.expired(now.Add(time.Second)) || n.expired(now) {
		t.Error("an older record restored it, or the grace is wrong")
	}
	if n.restore(6); n.expired(now.Add(time.Hour)) {
		t.Error("a newer record did not restore it")
	}
}

func TestListingsAreBoundedAndKept(t *testing.T) {
	l := newListings()
	first := l.add([]listed{{name: "first"}})
	var last uint64
	for range maxListings {
		last = l.add([]listed{{name: "more"}})
	}
	if _, found := l.get(first); found || len(l.open) != maxListings {
		t.Errorf("the oldest is kept; %d listings", len(l.open))
	}
	if names, found := l.get(last); !found || names[0].name != "more" {
		t.Error("the newest is lost")
	}
	if l.remove(last); len(l.open) != maxListings-1 {
		t.Error("a listing that ended is kept")
	}
}

func TestUnknownErrorsAreEIO(t *testing.T) {
	for err, want := range map[error]syscall.Errno{
		errStale: syscall.ESTALE, secret.ErrConflict: syscall.EIO, secret.ErrNewerFormat: syscall.EIO, nil: 0,
	} {
		if got := syscall.Errno(errnoOf(err)); got != want {
			t.Errorf("%v is %v, want %v", err, got, want)
		}
	}
}

func TestAMountTablesLineIsTakenApart(t *testing.T) {
	for _, c := range []struct {
		line, point string
		want        mounted
		ok          bool
	}{
		{
			`42 27 0:39 / /run/key\040hole/fs ro,nosuid shared:3 master:1 - fuse.keyhole keyhole rw,user_id=0`,
			"/run/key hole/fs", mounted{"0:39", "fuse.keyhole"}, true,
		},
		{`22 27 0:21 / /proc rw,relatime - proc proc rw`, "/proc", mounted{"0:21", "proc"}, true},
		{`22 27 0:21 / /a\134b rw - tmpfs`, `/a\b`, mounted{"0:21", "tmpfs"}, true},
		{`22 27 0:21 / /proc rw,relatime`, "", mounted{}, false},
		{``, "", mounted{}, false},
	} {
		point, got, ok := parseMount(c.line)
		if point != c.point || got != c.want || ok != c.ok {
			t.Errorf("%q: %q, %v, %v", c.line, point, got, ok)
		}
	}
}

func FuzzMountTable(f *testing.F) {
	f.Add(`42 27 0:39 / /run/key\040hole/fs ro,nosuid shared:3 - fuse.keyhole keyhole rw`)
	f.Add(`\`)
	f.Fuzz(func(t *testing.T, line string) {
		if point, m, ok := parseMount(line); !ok && (point != "" || m != mounted{}) {
			t.Errorf("%q: %q, %v", line, point, m)
		}
		escaped := strings.NewReplacer("\\", `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`).Replace(line)
		if got := unescape(escaped); got != line {
			t.Errorf("%q came back as %q", line, got)
		}
	})
}
