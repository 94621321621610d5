// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"fmt"
	"time"
)

// Sync returns after everything that was appended before the call is durable,
// with the last durable record. Concurrent calls share one fdatasync, and a
// call that finds everything durable makes none.
//
// The error is secret.ErrUnavailable, or that of ctx, which ends the waiting
// for others but not an fdatasync that is under way.
func (l *Log) Sync(ctx context.Context) (Head, error) {
	l.mu.Lock()
	target, synced := l.head.Index, l.synced
	l.mu.Unlock()
	if synced.Index >= target {
		return synced, nil
	}
	select {
	case l.syncing <- struct{}{}:
	case <-ctx.Done():
		return Head{}, fmt.Errorf("waiting for the audit log: %w", ctx.Err())
	}
	defer func() { <-l.syncing }()
	synced, err := l.syncTo(target, false)
	if err != nil {
		return Head{}, fmt.Errorf("making the audit log durable: %w: %w", failure(err), err)
	}
	return synced, nil
}

// syncTo makes the log durable up to target at least. l.syncing is held, so
// that the segment stays the same; appending goes on meanwhile.
func (l *Log) syncTo(target uint64, timed bool) (Head, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.synced.Index >= target {
		return l.synced, nil
	}
	if l.closed {
		return Head{}, errClosed()
	}
	if l.failed != nil {
		return l.synced, l.replaceLocked(l.failed)
	}
	head, s, end, bytes := l.head, l.segment, l.segment.end, len(l.unsynced)
	l.mu.Unlock()
	err := s.file.Datasync()
	l.mu.Lock()
	if timed {
		l.stats.TimedSyncs++
	} else {
		l.stats.Syncs++
	}
	if err != nil {
		l.stats.FailedSyncs++
		err = l.replaceLocked(err)
		return l.synced, err
	}
	l.durableLocked(head, end, bytes)
	return l.synced, nil
}

// datasyncLocked makes everything durable while appending waits. l.syncing is held.
func (l *Log) datasyncLocked() error {
	l.stats.Syncs++
	if err := l.segment.file.Datasync(); err != nil {
		l.stats.FailedSyncs++
		return l.replaceLocked(err)
	}
	l.durableLocked(l.head, l.segment.end, len(l.unsynced))
	return nil
}

// durableLocked takes note that head, the given end of the segment, and the
// first bytes of the unsynced ones are on the disk.
func (l *Log) durableLocked(head Head, end int64, bytes int) {
	l.synced, l.segment.synced = head, end
	left := copy(l.unsynced, l.unsynced[bytes:])
	l.unsynced = l.unsynced[:left]
	if left == 0 && cap(l.unsynced) > maxUnsynced/4 {
		l.unsynced = nil
	}
}

// scheduleLocked sees to it that the upkeep runs within SyncEvery.
func (l *Log) scheduleLocked() {
	if l.scheduled {
		return
	}
	l.scheduled = true
	select {
	case l.wake <- struct{}{}:
	default: // it was not seen yet
	}
}

// run does the upkeep, and nothing while nothing is appended.
func (l *Log) run() {
	timer := time.NewTimer(l.syncEvery)
	defer timer.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-l.wake:
		}
		timer.Reset(l.syncEvery)
		select {
		case <-l.stop:
			return
		case <-timer.C:
		}
		l.tick()
	}
}

// tick writes the counts that are due, makes the log durable, and reserves the
// next segment's space in time.
func (l *Log) tick() {
	l.mu.Lock()
	l.scheduled = false
	l.mu.Unlock()
	again := false
	if err := l.flushDenials(false); err != nil {
		again = true // it was logged when the append failed
	}
	l.syncing <- struct{}{}
	if _, err := l.syncTo(l.Head().Index, true); err != nil {
		again = true // logged where it failed
	}
	l.prepareSpare()
	<-l.syncing
	if again || l.denials.waiting() {
		l.mu.Lock()
		l.scheduleLocked()
		l.mu.Unlock()
	}
}
