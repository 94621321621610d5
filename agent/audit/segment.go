// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

const (
	segmentPrefix = "audit-"
	segmentSuffix = ".jsonl"
	indexDigits   = 20
	partSuffix    = ".part" // of a segment that is being made; it holds nothing that anybody relies on

	rejectedSuffix = ".rejected" // of a file that had a segment's name and is none

	maxFirst = 1 << 62 // bounds every index, so that the next one can always be computed

	formatPrefix = "keyhole-audit-"
	formatName   = formatPrefix + "1"
)

// file is what a segment needs of the operating system. Tests put one in its
// place that fails, because disks do not on demand.
type file interface {
	WriteAt(p []byte, offset int64) (int, error)
	Truncate(size int64) error
	Datasync() error                  // fdatasync(2)
	Reserve(offset, size int64) error // allocates space without changing the file's length
	Close() error
}

// files makes them.
type files interface {
	Create(path string) (file, error) // a new file, 0600; it must not exist
	Open(path string) (file, error)
	SyncFolder(path string) error
}

// segment is one file of the log, open for appending. It is guarded by Log.mu.
type segment struct {
	file   file
	name   string
	end    int64 // where the next line goes
	synced int64 // what is durable
	size   int64 // of the space that was reserved, header included
	junk   bool  // bytes after end may be left of a write that failed
	spent  bool  // nothing is to be added
}

// place is a segment in the folder.
type place struct {
	name  string
	first uint64 // according to the name
}

func segmentName(first uint64) string {
	return fmt.Sprintf("%s%0*d%s", segmentPrefix, indexDigits, first, segmentSuffix)
}

// parseSegmentName returns the number of the segment's first record.
func parseSegmentName(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, segmentPrefix)
	if !ok {
		return 0, false
	}
	if digits, ok = strings.CutSuffix(digits, segmentSuffix); !ok || len(digits) != indexDigits {
		return 0, false
	}
	first, err := strconv.ParseUint(digits, 10, 64)
	return first, err == nil && first > 0 && first < maxFirst && segmentName(first) == name
}

// listSegments returns the segments in order.
func listSegments(dir string) ([]place, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing the audit log: %w", err)
	}
	var places []place
	for _, entry := range entries {
		if first, ok := parseSegmentName(entry.Name()); ok {
			places = append(places, place{entry.Name(), first})
		}
	}
	slices.SortFunc(places, func(a, b place) int { return strings.Compare(a.name, b.name) })
	return places, nil
}

// header is the first line of a segment.
type header struct {
	First      uint64   // the index of the first record
	Previous   [32]byte // the MAC of the record before it
	Unfinished uint64   // the earliest intent without an outcome; 0 for none
	Sealed     bool     // made without a key
	MAC        [32]byte
}

// appendHeader appends the line up to its MAC.
func appendHeader(b []byte, h *header) []byte {
	b = append(b, `{"format":"`+formatName+`","first":`...)
	b = strconv.AppendUint(b, h.First, 10)
	b = append(b, `,"previous":"`...)
	for _, c := range h.Previous {
		b = append(b, hexDigit(rune(c>>4)), hexDigit(rune(c)))
	}
	b = append(b, '"')
	b = appendNumber(b, `,"unfinished":`, h.Unfinished)
	return appendTrue(b, `,"sealed":true`, h.Sealed)
}

// parseHeader accepts exactly what appendHeader and appendMAC write. Errors:
// secret.ErrNewerFormat for another format, secret.ErrInvalid.
func parseHeader(line []byte) (header, error) {
	p := parser{rest: line}
	var h header
	if !p.skip(`{"format":"` + formatName + `","first":`) {
		if p.skip(`{"format":"` + formatPrefix) {
			format, _, _ := strings.Cut(string(p.rest), `"`)
			return h, fmt.Errorf("segment of format %s%.20s, this version knows %s: %w", formatPrefix, format, formatName, secret.ErrNewerFormat)
		}
		return h, fmt.Errorf("%w segment: it does not begin with a header", secret.ErrInvalid)
	}
	var ok bool
	h.First, ok = p.number()
	p.check(ok && h.First > 0 && h.First < maxFirst)
	p.must(`,"previous":"`)
	p.hex(h.Previous[:])
	p.must(`"`)
	p.positive(`,"unfinished":`, &h.Unfinished)
	h.Sealed = p.skip(`,"sealed":true`)
	p.mac(&h.MAC)
	return h, p.end(line, "header")
}

// system is the real files.
type system struct{}

type diskFile struct{ *os.File }

var (
	_ files = system{}
	_ file  = diskFile{}
)

func (system) Create(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return diskFile{f}, err
}

func (system) Open(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	return diskFile{f}, err
}

// SyncFolder makes names durable.
func (system) SyncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (f diskFile) Datasync() error {
	return f.control("fdatasync", unix.Fdatasync)
}

// Reserve allocates blocks, so that a full disk is met when a segment begins
// and not in the middle of it. Filesystems that cannot do it are no error:
// there, every write may meet a full disk, and is prepared for it.
func (f diskFile) Reserve(offset, size int64) error {
	err := f.control("fallocate", func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, offset, size)
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

// control calls do with the descriptor, which stays open meanwhile, and again
// when a signal interrupted it.
func (f diskFile) control(name string, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = conn.Control(func(fd uintptr) {
		for {
			if result = do(int(fd)); !errors.Is(result, unix.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	if result != nil {
		return fmt.Errorf("%s %s: %w", name, filepath.Base(f.Name()), result)
	}
	return nil
}
