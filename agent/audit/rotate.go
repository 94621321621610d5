// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	spareName = segmentPrefix + "spare" + partSuffix
	nextName  = segmentPrefix + "next" + partSuffix
)

// makeRoom sees to it that need bytes can be appended, or says why not.
func (l *Log) makeRoom(need int64) error {
	l.syncing <- struct{}{}
	defer func() { <-l.syncing }()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.segment
	switch {
	case l.closed:
		return errClosed()
	case l.failed != nil:
		return l.replaceLocked(l.failed)
	case s.spent || s.end+need > s.size:
		return l.rotateLocked(need)
	case len(l.unsynced) >= maxUnsynced:
		return l.datasyncLocked()
	}
	return nil // somebody else did it
}

// rotateLocked goes on in a new segment. The old one is made durable first: a
// crash may tear only the last segment.
func (l *Log) rotateLocked(need int64) error {
	old := l.segment
	if old.junk {
		if err := l.repairLocked(); err != nil {
			return l.replaceLocked(err)
		}
	}
	if err := l.datasyncLocked(); err != nil || l.segment != old {
		return err
	}
	event := l.ownEvent(OperationSegment, "continues "+old.name)
	if err := l.beginLocked(l.head, nil, &event, need); err != nil {
		_ = l.refusedLocked(err) // for its log line and Health; the caller words the error
		return err
	}
	l.retireLocked(old, old.end)
	return nil
}

// replaceLocked gives up a segment that could not be made durable: the kernel
// may have dropped what it held, and may say next time that all is well
// (https://wiki.postgresql.org/wiki/Fsync_Errors). What was not durable yet is
// written again, to a new segment. Its error is also what Sync and Append
// return until another call succeeds.
func (l *Log) replaceLocked(cause error) error {
	old := l.segment
	if l.failed == nil {
		l.logger.Error("a segment of the audit log could not be made durable; what it may lack is written again elsewhere",
			"segment", old.name, "error", cause)
	}
	again := "nothing had to be written again"
	if l.head.Index > l.synced.Index {
		again = fmt.Sprintf("records %d to %d are written again", l.synced.Index+1, l.head.Index)
	}
	event := l.ownEvent(OperationRewrite, fmt.Sprintf("%s: %v; %s", old.name, cause, again))
	if err := l.beginLocked(l.synced, l.unsynced, &event, 0); err != nil {
		l.failed = fmt.Errorf("%w, and no other segment could be begun: %w", cause, err)
		l.scheduleLocked() // to try again
		return l.failed
	}
	l.failed = nil
	l.retireLocked(old, old.synced)
	return nil
}

// retireLocked ends a segment. What cannot be cut off does no harm: readers
// stop where the next segment begins.
func (l *Log) retireLocked(old *segment, end int64) {
	if err := errors.Join(old.file.Truncate(end), old.file.Close()); err != nil {
		l.logger.Warn("a segment of the audit log could not be closed", "segment", old.name, "error", err)
	}
}

// beginLocked makes a segment that begins after the record previous with the
// given lines, which are those up to l.head, and event. It is durable, under
// its name, when the Log begins to use it; on an error nothing has changed.
// l.syncing is held, except by Open.
func (l *Log) beginLocked(previous Head, lines []byte, event *Event, need int64) error {
	h := header{First: previous.Index + 1, Previous: previous.MAC, Unfinished: l.oldestLocked(), Sealed: l.chain.sealed()}
	l.buffer = appendHeader(l.buffer[:0], &h)
	l.buffer = appendMAC(l.buffer, l.chain.sum(h.Sealed, &h.Previous, l.buffer))
	l.buffer = append(l.buffer, lines...)
	head := l.encodeLocked(l.head, event)
	s := &segment{name: segmentName(h.First), end: int64(len(l.buffer))}
	s.synced, s.size = s.end, max(l.segmentBytes, s.end+need)

	part := nextName
	f := l.spare
	if f != nil {
		part = spareName
	} else {
		var err error
		if f, err = l.create(nextName, s.size); err != nil {
			return fmt.Errorf("beginning a segment: %w", err)
		}
	}
	s.file = f
	l.spare = nil
	if err := l.publish(s, part); err != nil {
		return fmt.Errorf("beginning a segment: %w", errors.Join(err, f.Close(), removeIfThere(filepath.Join(l.dir, part))))
	}
	l.segment, l.synced, l.unsynced = s, head, l.unsynced[:0]
	l.shortage = nil // there was space after all
	l.writtenLocked([]Event{*event}, head)
	l.stats.Segments++
	return nil
}

// publish fills a new segment from l.buffer and gives it its name.
func (l *Log) publish(s *segment, part string) error {
	if err := s.file.Reserve(0, s.size); err != nil {
		return err
	}
	if _, err := s.file.WriteAt(l.buffer, 0); err != nil {
		return err
	}
	if err := s.file.Datasync(); err != nil {
		return err
	}
	name := filepath.Join(l.dir, s.name)
	if _, err := os.Lstat(name); err == nil {
		if err := l.reject(s.name); err != nil {
			return err
		}
	}
	if err := os.Rename(filepath.Join(l.dir, part), name); err != nil {
		return err
	}
	if err := l.files.SyncFolder(l.dir); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

// reject moves a file aside that has a segment's name and is none of ours.
func (l *Log) reject(name string) error {
	l.logger.Error("a file in the folder of the audit log is not the log's; it is moved aside", "file", name, "to", name+rejectedSuffix)
	if err := os.Rename(filepath.Join(l.dir, name), filepath.Join(l.dir, name+rejectedSuffix)); err != nil {
		return fmt.Errorf("moving a foreign file aside: %w", err)
	}
	return nil
}

// create makes a file with reserved space.
func (l *Log) create(name string, size int64) (file, error) {
	path := filepath.Join(l.dir, name)
	if err := removeIfThere(path); err != nil {
		return nil, err
	}
	f, err := l.files.Create(path)
	if err != nil {
		return nil, err
	}
	if err := f.Reserve(0, size); err != nil {
		return nil, errors.Join(err, f.Close(), removeIfThere(path))
	}
	return f, nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// prepareSpare reserves the next segment's space when a quarter of the current
// one is left. l.syncing is held.
func (l *Log) prepareSpare() {
	l.mu.Lock()
	due := !l.closed && l.spare == nil && l.segment.end > l.segment.size/4*3
	l.mu.Unlock()
	if !due {
		return
	}
	f, err := l.create(spareName, l.segmentBytes)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && l.shortage == nil {
		l.logger.Error("there is no space for the next segment of the audit log; requests will fail when the current one is full",
			"left", l.segment.size-l.segment.end, "error", err)
	}
	l.spare, l.shortage = f, err
	if err != nil {
		l.spare = nil
	}
}
