// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// Defaults of Config.
const (
	DefaultSegmentBytes = 64 << 20
	DefaultSyncEvery    = 50 * time.Millisecond
)

// maxUnsynced is how many bytes may await the disk before Append waits too.
const maxUnsynced = 16 << 20

// Config is what a Log is made of.
type Config struct {
	Dir          string           // made 0700 when it is absent; nobody else may be able to write it
	Key          []byte           // at least KeySize bytes; nil while sealed. Not kept: the caller may wipe it
	Anchor       *Head            // the last head that was kept elsewhere; nil when there is none
	SegmentBytes int64            // reserved for a segment; 0 means DefaultSegmentBytes
	SyncEvery    time.Duration    // how long a record may await the disk; 0 means DefaultSyncEvery
	StrictReads  bool             // Append and Deny too return only after the record is durable
	Development  bool             // marks all records
	Now          func() time.Time // nil means the system's clock
	Logger       *slog.Logger     // nil discards
}

// Log appends to the audit log in one folder. All methods may be called
// concurrently.
//
// Lock order: denials.mu, syncing, mu.
type Log struct {
	dir          string
	files        files
	segmentBytes int64
	syncEvery    time.Duration
	strict       bool
	development  bool
	now          func() time.Time
	logger       *slog.Logger
	self         identity.Caller
	folder       *os.File // holds the lock on the folder

	denials denials

	// syncing is held by who waits for the disk or replaces the segment, so
	// that no two wait for one file: only one of them would learn that it failed.
	syncing chan struct{}

	mu         sync.Mutex
	chain      *chain
	segment    *segment
	spare      file   // the next segment's space; nil until it is needed soon
	head       Head   // the last record
	synced     Head   // the last durable record
	unsynced   []byte // the lines after synced
	buffer     []byte // what is being written
	unfinished map[intentKey]intent
	scheduled  bool // the upkeep is going to run
	closed     bool
	failed     error // the segment is not to be trusted and there was no other to be had
	trouble    error // what made the last append fail
	shortage   error // why there is no spare
	found      Report
	stats      Stats

	wake   chan struct{}
	stop   chan struct{}
	upkeep sync.WaitGroup
}

// Stats counts since the log was opened.
type Stats struct {
	Records     uint64 // appended, the log's own included
	Bytes       uint64 // written, headers included
	Syncs       uint64 // fdatasync calls that Sync, or a strict Append, waited for
	TimedSyncs  uint64 // fdatasync calls because SyncEvery was over
	FailedSyncs uint64 // of both
	Segments    uint64 // begun
}

// Append writes the record of one event. It returns after write(2), or after
// the record is durable when Config.StrictReads is set.
//
// An error means that the operation must not be done or answered: the record
// is not in the log, or, in the strict case, may not last. It is
// secret.ErrUnavailable, secret.ErrFull, or secret.ErrTooLarge for an event of more than 1 MiB.
func (l *Log) Append(e Event) error {
	if err := l.writeOne(e); err != nil {
		return err
	}
	if l.strict {
		_, err := l.Sync(context.Background())
		return err
	}
	return nil
}

func (l *Log) writeOne(e Event) error {
	events := [1]Event{e}
	return l.write(events[:])
}

// AppendAll writes records in one piece: all of them or, with an error, none.
// The events keep their order. They are durable after the next Sync.
func (l *Log) AppendAll(events []Event) error {
	if len(events) == 0 {
		return nil
	}
	return l.write(slices.Clone(events)) // times are filled in
}

// write retries as long as there is something to be done about a refusal.
func (l *Log) write(events []Event) error {
	for {
		l.mu.Lock()
		need, err := l.writeLocked(events)
		l.mu.Unlock()
		if need == 0 {
			return err
		}
		if err := l.makeRoom(need); err != nil {
			return fmt.Errorf("appending to the audit log: %w: %w", failure(err), err)
		}
	}
}

// writeLocked appends, or tells for how many bytes makeRoom has to be called.
func (l *Log) writeLocked(events []Event) (need int64, err error) {
	if l.closed {
		return 0, errClosed()
	}
	head := l.head
	l.buffer = l.buffer[:0]
	for i := range events {
		before := len(l.buffer)
		head = l.encodeLocked(head, &events[i])
		if len(l.buffer)-before > maxLine {
			return 0, fmt.Errorf("appending to the audit log: %w: an event of more than %d bytes", secret.ErrTooLarge, maxLine)
		}
	}
	s, size := l.segment, int64(len(l.buffer))
	if !l.readyLocked(size) {
		return size, nil
	}
	if s.junk {
		if err := l.repairLocked(); err != nil {
			return 0, l.refusedLocked(err)
		}
	}
	if _, err := s.file.WriteAt(l.buffer, s.end); err != nil {
		s.junk = true
		// Where only space is missing, the segment is good again when there
		// is some; a place on the disk that cannot be written stays that way.
		s.spent = !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT)
		// Parts of a batch must not stay: they would be whole records.
		return 0, l.refusedLocked(errors.Join(err, l.repairLocked()))
	}
	s.end += size
	l.unsynced = append(l.unsynced, l.buffer...)
	l.writtenLocked(events, head)
	return 0, nil
}

// readyLocked reports whether the segment takes that many bytes.
func (l *Log) readyLocked(size int64) bool {
	s := l.segment
	return l.failed == nil && !s.spent && s.end+size <= s.size && len(l.unsynced) < maxUnsynced
}

// writtenLocked takes note of events that are in the log now, up to head.
func (l *Log) writtenLocked(events []Event, head Head) {
	for i := range events {
		l.noteLocked(l.head.Index+1+uint64(i), &events[i])
	}
	l.stats.Records += head.Index - l.head.Index
	l.stats.Bytes += uint64(len(l.buffer))
	l.head, l.trouble = head, nil
	l.scheduleLocked()
}

// encodeLocked appends the line of e, the record after head, to the buffer.
func (l *Log) encodeLocked(head Head, e *Event) Head {
	if e.Time.IsZero() {
		e.Time = l.now()
	}
	e.Development = e.Development || l.development
	start := len(l.buffer)
	head.Index++
	l.buffer = appendRecord(l.buffer, head.Index, l.chain.sealed(), e)
	head.MAC = *l.chain.sum(l.chain.sealed(), &head.MAC, l.buffer[start:])
	l.buffer = appendMAC(l.buffer, &head.MAC)
	return head
}

// repairLocked cuts off what a failed write may have left.
func (l *Log) repairLocked() error {
	s := l.segment
	if err := s.file.Truncate(s.end); err != nil {
		return fmt.Errorf("cutting off a failed write: %w", err)
	}
	s.junk = false
	// Cutting gave the reserved space back. Without it appending may still
	// work, so that its absence is no error.
	_ = s.file.Reserve(s.end, s.size-s.end)
	return nil
}

func (l *Log) refusedLocked(err error) error {
	if l.trouble == nil {
		l.logger.Error("the audit log does not take records; requests fail until it does", "error", err)
	}
	l.trouble = err
	return fmt.Errorf("appending to the audit log: %w: %w", failure(err), err)
}

func errClosed() error {
	return fmt.Errorf("audit log: %w: it is closed", secret.ErrUnavailable)
}

// Head returns the last record, durable or not.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Stats returns the counts so far.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// Found returns what the check at Open, or at Unlock, found: of the log from
// the anchor, the last segment's beginning, or the earliest unfinished change
// on, whichever is first.
func (l *Log) Found() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.found
	r.Problems = slices.Clone(r.Problems)
	return r
}

// Health returns nil when records are taken and there will be space for the
// next ones, otherwise what is wrong.
func (l *Log) Health() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return errClosed()
	case l.failed != nil:
		return fmt.Errorf("the audit log cannot be made durable: %w", l.failed)
	case l.trouble != nil:
		return fmt.Errorf("the audit log does not take records: %w", l.trouble)
	case l.shortage != nil:
		return fmt.Errorf("the audit log will soon not take records: no space for the next segment: %w", l.shortage)
	}
	return nil
}

// Close writes the counts of repeated denials, makes everything durable and
// gives the folder free. Appending fails afterwards. Closing again does nothing.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()
	flushed := l.flushDenials(true)
	_, synced := l.Sync(context.Background())
	l.syncing <- struct{}{}
	l.mu.Lock()
	if l.closed { // by somebody else, meanwhile
		l.mu.Unlock()
		<-l.syncing
		return nil
	}
	l.closed = true
	if synced == nil && l.synced.Index < l.head.Index { // written since
		synced = l.datasyncLocked()
	}
	err := errors.Join(flushed, synced, l.segment.file.Close())
	l.mu.Unlock()
	<-l.syncing
	close(l.stop)
	l.upkeep.Wait()
	if l.spare != nil {
		err = errors.Join(err, l.spare.Close(), os.Remove(filepath.Join(l.dir, spareName)))
	}
	return errors.Join(err, l.folder.Close())
}

// failure tells a full disk from everything else that is wrong with one.
func failure(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return secret.ErrFull
	}
	return secret.ErrUnavailable
}
