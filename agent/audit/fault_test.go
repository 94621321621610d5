// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// faulty stands before the real files and makes them fail as a disk does, which
// none does on demand.
type faulty struct {
	files
	mu       sync.Mutex
	sync     error // of each fdatasync
	write    error // of each write
	keep     int   // how many bytes of a failed write reach the file
	truncate error // of each truncation
	create   error // of each new file
	forget   bool  // a failed fdatasync drops what was not durable, as the kernel may
}

func (f *faulty) set(change func(f *faulty)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *faulty) heal() {
	f.set(func(f *faulty) { f.sync, f.write, f.truncate, f.create = nil, nil, nil, nil })
}

func (f *faulty) Create(path string) (file, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.create != nil {
		return nil, f.create
	}
	inner, err := f.files.Create(path)
	return &faultyFile{file: inner, disk: f}, err
}

func (f *faulty) Open(path string) (file, error) {
	inner, err := f.files.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	return &faultyFile{file: inner, disk: f, durable: info.Size(), end: info.Size()}, err
}

type faultyFile struct {
	file
	disk         *faulty
	durable, end int64
}

func (f *faultyFile) WriteAt(p []byte, offset int64) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.disk.write != nil {
		n, _ := f.file.WriteAt(p[:min(len(p), f.disk.keep)], offset)
		return n, f.disk.write
	}
	f.end = offset + int64(len(p))
	return f.file.WriteAt(p, offset)
}

func (f *faultyFile) Datasync() error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.disk.sync == nil {
		f.durable = f.end
		return f.file.Datasync()
	}
	if f.disk.forget {
		lost := make([]byte, f.end-f.durable)
		if _, err := f.file.WriteAt(lost, f.durable); err != nil {
			return err
		}
	}
	return f.disk.sync
}

func (f *faultyFile) Truncate(size int64) error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.disk.truncate != nil {
		return f.disk.truncate
	}
	return f.file.Truncate(size)
}

func openFaulty(t *testing.T, c Config) (*Log, *faulty) {
	t.Helper()
	disk := &faulty{files: system{}}
	l, err := open(c, disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		disk.heal()
		mustClose(t, l)
	})
	return l, disk
}

func TestAFailedWriteLeavesNothingBehind(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		keep int
	}{
		"disk full, nothing written":          {unix.ENOSPC, 0},
		"disk full, in the middle of a line":  {unix.ENOSPC, 700},
		"disk full, all written but the end":  {unix.ENOSPC, 1 << 20},
		"bad block, in the middle of a batch": {unix.EIO, 700},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l, disk := openFaulty(t, config(dir))
			mustAppend(t, l, read(1))
			disk.set(func(f *faulty) { f.write, f.keep = test.err, test.keep })
			err := l.AppendAll([]Event{change(2, Intent), read(3), read(4)})
			if !errors.Is(err, secret.ErrUnavailable) && !errors.Is(err, secret.ErrFull) || !errors.Is(err, test.err) {
				t.Errorf("error %v", err)
			}
			if l.Health() == nil {
				t.Error("the log is healthy")
			}
			if got := requests(t, dir); !slices.Equal(got, []string{"request-1"}) {
				t.Errorf("records while it fails: %v", got)
			}
			if len(l.Unfinished()) > 0 {
				t.Error("a change that was refused is unfinished")
			}
			disk.heal()
			mustAppend(t, l, read(5))
			if err := l.Health(); err != nil {
				t.Error(err)
			}
			head := mustSync(t, l)
			mustVerify(t, dir, &head)
			if got := requests(t, dir); !slices.Equal(got, []string{"request-1", "request-5"}) {
				t.Errorf("records: %v", got)
			}
		})
	}
}

func TestWhatAFailedWriteLeftIsCutOffBeforeTheNext(t *testing.T) {
	dir := t.TempDir()
	l, disk := openFaulty(t, config(dir))
	mustAppend(t, l, read(1))
	disk.set(func(f *faulty) { f.write, f.keep, f.truncate = unix.ENOSPC, 700, unix.EIO })
	if err := l.AppendAll([]Event{read(2), read(3)}); err == nil {
		t.Fatal("no error")
	}
	disk.set(func(f *faulty) { f.write = nil })
	if err := l.Append(read(4)); !errors.Is(err, unix.EIO) {
		t.Errorf("appending over what is left: %v", err)
	}
	disk.heal()
	mustAppend(t, l, read(5))
	head := mustSync(t, l)
	mustVerify(t, dir, &head)
	if got := requests(t, dir); !slices.Equal(got, []string{"request-1", "request-5"}) {
		t.Errorf("records: %v", got)
	}
}

func TestASegmentThatCouldNotBeMadeDurableIsWrittenAgain(t *testing.T) {
	for _, forget := range []bool{false, true} {
		for _, stuck := range []bool{false, true} { // the old segment cannot be cut either
			dir := t.TempDir()
			c := config(dir)
			c.SyncEvery = time.Hour
			l, disk := openFaulty(t, c)
			mustAppend(t, l, read(1))
			anchor := mustSync(t, l)
			mustAppend(t, l, read(2), read(3))
			disk.set(func(f *faulty) {
				f.sync, f.forget, f.create = unix.EIO, forget, unix.ENOSPC
				if stuck {
					f.truncate = unix.EIO
				}
			})
			if _, err := l.Sync(t.Context()); !errors.Is(err, unix.EIO) || !errors.Is(err, secret.ErrUnavailable) && !errors.Is(err, secret.ErrFull) {
				t.Errorf("Sync: %v", err)
			}
			if err := l.Append(read(4)); !errors.Is(err, unix.EIO) {
				t.Errorf("Append: %v", err)
			}
			if l.Health() == nil {
				t.Error("the log is healthy")
			}
			// The kernel now says that all is well. The segment stays distrusted.
			disk.set(func(f *faulty) { f.sync = nil })
			if _, err := l.Sync(t.Context()); !errors.Is(err, unix.EIO) {
				t.Errorf("Sync, when the kernel forgot the error: %v", err)
			}
			disk.set(func(f *faulty) { f.create = nil })
			mustAppend(t, l, read(5))
			head := mustSync(t, l)
			disk.heal()
			mustAppend(t, l, read(6))
			head = mustSync(t, l)
			if err := l.Health(); err != nil {
				t.Error(err)
			}
			report := mustVerify(t, dir, &head)
			mustVerify(t, dir, &anchor)
			want := []string{"request-1", "request-2", "request-3", "request-5", "request-6"}
			if got := requests(t, dir); !slices.Equal(got, want) || report.Segments != 2 {
				t.Errorf("records in %d segments: %v", report.Segments, got)
			}
			mustClose(t, l)
			c.Anchor = &head
			if found := mustOpen(t, c).Found(); len(found.Problems) > 0 {
				t.Error(found.Problems)
			}
		}
	}
}

func TestAFailedSyncIsNoErrorWhenAnotherSegmentTakesTheRecords(t *testing.T) {
	dir := t.TempDir()
	l, disk := openFaulty(t, config(dir))
	mustAppend(t, l, read(1))
	disk.set(func(f *faulty) { f.sync = unix.EIO })
	l.files = system{} // a new segment lies on a good part of the disk
	head := mustSync(t, l)
	disk.heal()
	mustVerify(t, dir, &head)
	checkRewrite(t, dir)
	if l.Stats().FailedSyncs != 1 {
		t.Errorf("stats %+v", l.Stats())
	}
}

// checkRewrite wants the log to say that a segment could not be made durable.
func checkRewrite(t *testing.T, dir string) {
	t.Helper()
	for r, err := range Records(dir) {
		if err == nil && r.Operation == OperationRewrite && strings.Contains(r.Reason, unix.EIO.Error()) {
			return
		}
	}
	t.Error("the log does not say what happened")
}

// badOld is a disk on which files that exist cannot be made durable.
type badOld struct{ system }

func (badOld) Open(path string) (file, error) {
	return (&faulty{files: system{}, sync: unix.EIO}).Open(path)
}

func TestALogWhoseLastSegmentCannotBeMadeDurableGoesOnInANewOne(t *testing.T) {
	dir := t.TempDir()
	head := written(t, dir)
	c := config(dir)
	c.Anchor = &head
	l, err := open(c, badOld{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustClose(t, l) })
	if l.Stats().Segments != 1 {
		t.Error("the old segment is used")
	}
	mustAppend(t, l, read(1))
	head = mustSync(t, l)
	mustVerify(t, dir, &head)
	checkRewrite(t, dir)
}

func TestASegmentThatCannotBeMadeDurableAtItsEndIsReplaced(t *testing.T) {
	dir := t.TempDir()
	c := config(dir)
	c.SyncEvery = time.Hour
	l, disk := openFaulty(t, c)
	disk.set(func(f *faulty) { f.sync, f.forget = unix.EIO, true })
	l.files = system{}
	for n := range 30 { // beyond the end of the first segment
		mustAppend(t, l, read(n))
	}
	head := mustSync(t, l)
	disk.heal()
	mustVerify(t, dir, &head)
	if got := requests(t, dir); len(got) != 30 {
		t.Errorf("%d records", len(got))
	}
	checkRewrite(t, dir)
}

// smallDisk mounts a filesystem of one megabyte.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1m,mode=0700")
	if errors.Is(err, unix.EPERM) && os.Getenv("CI") != "true" {
		t.Skip("NOT TESTED: a full disk, because mounting one needs root")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestAFullDiskIsKnownAheadAndAppendingGoesOnWhenThereIsSpace(t *testing.T) {
	disk := smallDisk(t)
	dir := filepath.Join(disk, "audit")
	c := config(dir)
	c.SegmentBytes, c.SyncEvery = 64<<10, time.Hour
	l := mustOpen(t, c)
	filler := filepath.Join(disk, "filler")
	fill(t, filler)

	n := 0
	for ; l.Append(read(n)) == nil; n++ {
		if n%5 == 0 {
			l.tick()
		}
		if l.segment.end > l.segmentBytes*9/10 && l.Health() == nil {
			t.Fatal("the segment is nearly full, and the log is healthy")
		}
	}
	if l.segment.end < l.segmentBytes-1000 {
		t.Errorf("only %d of %d reserved bytes were used", l.segment.end, l.segmentBytes)
	}
	if err := l.Append(read(n)); !errors.Is(err, secret.ErrUnavailable) && !errors.Is(err, secret.ErrFull) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error %v", err)
	}
	mustSync(t, l) // what was taken is durable
	if got := len(requests(t, dir)); got != n {
		t.Errorf("%d records, %d were taken", got, n)
	}
	remove(t, filler)
	mustAppend(t, l, read(n))
	head := mustSync(t, l)
	l.tick()
	if err := l.Health(); err != nil {
		t.Error(err)
	}
	mustVerify(t, dir, &head)
	if got := len(requests(t, dir)); got != n+1 {
		t.Errorf("%d records, %d were taken", got, n+1)
	}
}

func TestALogOpensOnAFullDisk(t *testing.T) {
	disk := smallDisk(t)
	dir := filepath.Join(disk, "audit")
	c := config(dir)
	c.SegmentBytes = 64 << 10
	l := mustOpen(t, c)
	mustAppend(t, l, read(1))
	head := mustSync(t, l)
	mustClose(t, l)
	fill(t, filepath.Join(disk, "filler"))
	c.Anchor = &head
	l = mustOpen(t, c)
	mustAppend(t, l, read(2))
	head = mustSync(t, l)
	mustVerify(t, dir, &head)
}

func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
