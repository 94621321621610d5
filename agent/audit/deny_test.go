// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// clock is set by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func denied(n int) Event {
	e := read(n)
	e.Time = time.Time{}
	e.Decision, e.Reason, e.Policy = Denied, "no rule allows it", ""
	e.Caller.Process.PID = 100 + n
	return e
}

func deny(t *testing.T, l *Log, events ...Event) {
	t.Helper()
	for _, e := range events {
		if err := l.Deny(e); err != nil {
			t.Fatal(err)
		}
	}
}

// counts lists the records as request×count.
func counts(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	for _, r := range records(t, dir) {
		all = append(all, fmt.Sprintf("%s×%d", r.Caller.Request, r.Count))
	}
	return all
}

func denyLog(t *testing.T) (*Log, *clock, string) {
	t.Helper()
	dir, c := t.TempDir(), newClock()
	conf := config(dir)
	conf.SegmentBytes, conf.SyncEvery, conf.Now = 1<<20, time.Hour, c.Now
	return mustOpen(t, conf), c, dir
}

func check(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := counts(t, dir); !slices.Equal(got, want) {
		t.Errorf("records %v, want %v", got, want)
	}
}

func TestTheFirstOfEqualDenialsIsWrittenAndRepeatsAreCounted(t *testing.T) {
	l, c, dir := denyLog(t)
	deny(t, l, denied(1))
	check(t, dir, "request-1×0")
	c.advance(999 * time.Millisecond)
	deny(t, l, denied(2), denied(3))
	check(t, dir, "request-1×0")
	l.tick()
	check(t, dir, "request-1×0")
	c.advance(time.Millisecond)
	l.tick()
	check(t, dir, "request-1×0", "request-3×2")
	deny(t, l, denied(4), denied(5))
	c.advance(time.Second)
	deny(t, l, denied(6)) // comes before the upkeep does
	check(t, dir, "request-1×0", "request-3×2", "request-4×0", "request-5×1", "request-6×0")
	c.advance(-time.Hour)
	deny(t, l, denied(7))
	if got := counts(t, dir); got[len(got)-1] != "request-7×0" {
		t.Errorf("after the clock was set back: %v", got)
	}
}

func TestDifferentDenialsAreAllWritten(t *testing.T) {
	l, _, dir := denyLog(t)
	differ := []func(e *Event){
		func(*Event) {},
		func(e *Event) { e.Path = "db/other" },
		func(e *Event) { e.Operation = "put" },
		func(e *Event) { e.Reason = "another" },
		func(e *Event) { e.Caller.IDs = nil },
		func(e *Event) { e.Caller.Process.UID = 1002 },
		func(e *Event) { e.Caller.Process.Executable = "/bin/cat" },
	}
	for n, change := range differ {
		e := denied(n)
		change(&e)
		deny(t, l, e)
	}
	if got := counts(t, dir); len(got) != len(differ) {
		t.Errorf("records %v", got)
	}
}

func TestACloseWritesTheCountsThatArePending(t *testing.T) {
	l, _, dir := denyLog(t)
	deny(t, l, denied(1), denied(2), denied(3))
	mustClose(t, l)
	check(t, dir, "request-1×0", "request-3×2")
}

func TestCountsAreWrittenByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l := mustOpen(t, config(dir))
		deny(t, l, denied(1), denied(2))
		time.Sleep(denialWindow + 2*DefaultSyncEvery)
		synctest.Wait()
		check(t, dir, "request-1×0", "request-2×1")
		if l.denials.waiting() || l.synced != l.head {
			t.Error("something is left to do")
		}
		mustClose(t, l)
	})
}

func TestADenialThatCannotBeWrittenIsAnErrorAndCountsAreKept(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	conf := config(dir)
	conf.SyncEvery, conf.Now = time.Hour, c.Now
	l, disk := openFaulty(t, conf)
	deny(t, l, denied(1), denied(2))
	disk.set(func(f *faulty) { f.write = unix.ENOSPC })
	other := denied(3)
	other.Path = "db/other"
	if err := l.Deny(other); err == nil {
		t.Error("the first of a kind was not written, and that is no error")
	}
	c.advance(time.Second)
	l.tick()
	disk.heal()
	l.tick()
	check(t, dir, "request-1×0", "request-2×1")
	deny(t, l, other)
	check(t, dir, "request-1×0", "request-2×1", "request-3×0")
}

func TestAStrictDenialReturnsDurable(t *testing.T) {
	c := config(t.TempDir())
	c.StrictReads, c.SyncEvery = true, time.Hour
	l := mustOpen(t, c)
	deny(t, l, denied(1))
	if l.synced != l.head {
		t.Errorf("durable up to %d of %d", l.synced.Index, l.head.Index)
	}
}
