// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		appendUntilKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

var testKey = bytes.Repeat([]byte{7}, KeySize)

// config is that of a small log: segments change every few records.
func config(dir string) Config {
	return Config{Dir: dir, Key: testKey, SegmentBytes: 4096}
}

func mustOpen(t testing.TB, c Config) *Log {
	t.Helper()
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustClose(t, l) })
	return l
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func mustAppend(t testing.TB, l *Log, events ...Event) {
	t.Helper()
	for _, e := range events {
		if err := l.Append(e); err != nil {
			t.Fatal(err)
		}
	}
}

func mustSync(t testing.TB, l *Log) Head {
	t.Helper()
	head, err := l.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return head
}

func mustVerify(t testing.TB, dir string, anchor *Head) Report {
	t.Helper()
	report, err := Verify(dir, testKey, anchor)
	if err != nil {
		t.Fatalf("Verify: %v\n%v", err, report.Problems)
	}
	return report
}

// read is a record like those of most requests.
func read(n int) Event {
	return Event{
		Time: time.Date(2026, 1, 2, 3, 4, 5, n, time.UTC),
		Caller: identity.Caller{
			IDs:     []spiffeid.ID{spiffeid.RequireFromString("spiffe://example.org/ns/prod/sa/app")},
			Source:  identity.X509,
			Process: identity.Process{PID: 4711, UID: 1001, GID: 1001, Executable: "/usr/bin/app", Cgroup: 99},
			Request: fmt.Sprintf("request-%d", n),
		},
		Operation: "get", Path: "db/creds", SecretID: secret.ID{1, 2, 3}, Version: 3, Revision: 17,
		Decision: Allowed, Policy: "app-read",
	}
}

func change(n byte, phase Phase) Event {
	e := read(int(n))
	e.Operation, e.Phase, e.Batch = "put", phase, [16]byte{n}
	return e
}

// records returns those of the folder that are not about the log itself.
func records(t testing.TB, dir string) []Record {
	t.Helper()
	var all []Record
	for r, err := range Records(dir) {
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(r.Operation, "audit.") {
			all = append(all, r)
		}
	}
	return all
}

func requests(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	for _, r := range records(t, dir) {
		all = append(all, r.Caller.Request)
	}
	return all
}

func TestWhatIsAppendedIsReadAndVerifiedAcrossSegments(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, config(dir))
	var want []string
	for n := range 50 {
		mustAppend(t, l, read(n))
		want = append(want, fmt.Sprintf("request-%d", n))
	}
	head := mustSync(t, l)
	if got := requests(t, dir); !slices.Equal(got, want) {
		t.Errorf("records: %v", got)
	}
	report := mustVerify(t, dir, &head)
	if report.Head != head || report.Segments < 3 || report.Torn != nil {
		t.Errorf("report %+v, head %v", report, head)
	}
	first := records(t, dir)[0]
	first.Caller.IDs = nil
	wanted := read(0)
	wanted.Caller.IDs = nil
	if fmt.Sprint(first.Event) != fmt.Sprint(wanted) {
		t.Errorf("record %+v\n want %+v", first.Event, wanted)
	}
	checkModes(t, dir)
}

func checkModes(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v (%v)", entry.Name(), info.Mode(), err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder has mode %v (%v)", info.Mode(), err)
	}
}

func TestAReopenedLogContinuesTheChain(t *testing.T) {
	dir := t.TempDir()
	var anchor *Head
	for n := range 5 {
		c := config(dir)
		c.Anchor = anchor
		l := mustOpen(t, c)
		if problems := l.Found().Problems; len(problems) > 0 {
			t.Fatal(problems)
		}
		for i := range 7 {
			mustAppend(t, l, read(10*n+i))
		}
		head := mustSync(t, l)
		anchor = &head
		mustClose(t, l)
	}
	report := mustVerify(t, dir, anchor)
	if report.Records != 5*7+5+uint64(report.Segments)-1 { // and the starts, and the segments' beginnings
		t.Errorf("report %+v", report)
	}
}

func TestASecondLogInTheSameFolderIsRefused(t *testing.T) {
	dir := t.TempDir()
	mustOpen(t, config(dir))
	if _, err := Open(config(dir)); !errors.Is(err, secret.ErrInUse) {
		t.Errorf("error %v", err)
	}
}

func TestWhatCannotBeALogIsRefused(t *testing.T) {
	shared := t.TempDir()
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{
		"short key":       {Dir: t.TempDir(), Key: testKey[:16]},
		"negative size":   {Dir: t.TempDir(), Key: testKey, SegmentBytes: -1},
		"writable by all": {Dir: shared, Key: testKey},
	} {
		if _, err := Open(c); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if _, err := Verify(t.TempDir(), nil, nil); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("verifying without a key: error %v", err)
	}
}

func TestABatchLargerThanASegmentIsTakenWhole(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, config(dir))
	var group []Event
	for n := range 100 {
		group = append(group, read(n))
	}
	if err := l.AppendAll(group); err != nil {
		t.Fatal(err)
	}
	head := mustSync(t, l)
	mustVerify(t, dir, &head)
	segments := map[string]bool{}
	for _, r := range records(t, dir) {
		segments[r.Segment] = true
	}
	if len(segments) != 1 {
		t.Errorf("the batch is in %d segments", len(segments))
	}
}

func TestAnEventThatIsTooLargeIsRefusedAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, config(dir))
	large := read(1)
	id := spiffeid.RequireFromString("spiffe://example.org/" + strings.Repeat("a", 1500))
	large.Caller.IDs = slices.Repeat([]spiffeid.ID{id}, 1000)
	if err := l.AppendAll([]Event{read(0), large}); !errors.Is(err, secret.ErrTooLarge) {
		t.Errorf("error %v", err)
	}
	mustAppend(t, l, read(2))
	if got := requests(t, dir); !slices.Equal(got, []string{"request-2"}) {
		t.Errorf("records: %v", got)
	}
}

func TestUnfinishedChangesAreFoundAgainHoweverLongAgoTheyBegan(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, config(dir))
	for n := range 200 {
		mustAppend(t, l, change(byte(n), Intent))
		if n%50 != 3 {
			mustAppend(t, l, change(byte(n), Outcome))
		}
	}
	check := func(l *Log, want ...byte) {
		t.Helper()
		var got []byte
		for _, e := range l.Unfinished() {
			got = append(got, e.Batch[0])
			if e.Phase != Intent || e.Path != "db/creds" || e.Caller.Process.UID != 1001 {
				t.Errorf("event %+v", e)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("unfinished %v, want %v", got, want)
		}
	}
	check(l, 3, 53, 103, 153)
	head := mustSync(t, l)
	mustClose(t, l)

	c := config(dir)
	c.Anchor = &head
	l = mustOpen(t, c)
	check(l, 3, 53, 103, 153)
	mustAppend(t, l, change(3, Outcome), change(103, Outcome))
	check(l, 53, 153)
	mustClose(t, l)
	check(mustOpen(t, c), 53, 153)
}

func TestAHeadSurvivesBeingKept(t *testing.T) {
	want := Head{Index: 1<<40 + 5, MAC: [32]byte{1, 31: 2}}
	got, err := ParseHead(want.Append(nil))
	if err != nil || got != want {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := ParseHead([]byte("short")); !errors.Is(err, secret.ErrTampered) {
		t.Errorf("error %v", err)
	}
}

func TestDevelopmentMarksEveryRecord(t *testing.T) {
	dir := t.TempDir()
	c := config(dir)
	c.Development = true
	l := mustOpen(t, c)
	mustAppend(t, l, read(1))
	for r, err := range Records(dir) {
		if err != nil || !r.Development {
			t.Errorf("record %+v, %v", r, err)
		}
	}
}

func TestAppendingDoesNotAllocate(t *testing.T) {
	c := config(t.TempDir())
	c.SegmentBytes, c.SyncEvery = 1<<20, time.Hour
	l := mustOpen(t, c)
	e := read(1)
	e.Time = time.Time{}
	mustAppend(t, l, e)
	l.mu.Lock()
	l.unsynced = slices.Grow(l.unsynced, 1<<20) // it grows to what a sync interval needs
	l.mu.Unlock()
	if n := testing.AllocsPerRun(100, func() {
		if err := l.Append(e); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per record", n)
	}
}
