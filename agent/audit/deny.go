// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	denialWindow = time.Second // for which repeats are counted
	maxDenials   = 10_000      // different ones at a time; more are written one by one
)

// denials counts repeats.
type denials struct {
	mu     sync.Mutex
	recent map[string]*denial // by the record without time, request and pid
	form   []byte
}

type denial struct {
	last  Event // the latest repeat
	since time.Time
	count int // repeats
}

func (d *denial) over(now time.Time) bool {
	return now.Before(d.since) || now.Sub(d.since) >= denialWindow // before: the clock was set back
}

// waiting reports whether there is anything to look after.
func (d *denials) waiting() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.recent) > 0
}

// Deny writes the record of a denial like Append, but only for the first of
// equal ones. Repeats within a second of it are counted; the count is written
// when the second is over, in a record like the last of them with Count set.
// Denials are equal when only their time, request and pid differ.
func (l *Log) Deny(e Event) error {
	repeated, err := l.deny(e)
	if err != nil || repeated || !l.strict {
		return err
	}
	_, err = l.Sync(context.Background())
	return err
}

func (l *Log) deny(e Event) (repeated bool, err error) {
	d, now := &l.denials, l.now()
	if e.Time.IsZero() {
		e.Time = now
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	alike := e
	alike.Time, alike.Caller.Request, alike.Caller.Process.PID = time.Time{}, "", 0
	d.form = appendRecord(d.form[:0], 0, false, &alike)
	if known := d.recent[string(d.form)]; known != nil {
		if !known.over(now) {
			known.last = e
			known.count++
			return true, nil
		}
		if err := l.writeCount(known); err != nil {
			return false, err
		}
		delete(d.recent, string(d.form))
	}
	if err := l.writeOne(e); err != nil {
		return false, err
	}
	if len(d.recent) < maxDenials {
		d.recent[string(d.form)] = &denial{since: now}
	}
	return false, nil
}

// writeCount writes the repeats that were counted, if any. denials.mu is held.
func (l *Log) writeCount(d *denial) error {
	if d.count == 0 {
		return nil
	}
	d.last.Count = d.count
	if err := l.writeOne(d.last); err != nil {
		return err
	}
	d.count = 0
	return nil
}

// flushDenials writes the counts of those whose second is over, or of all. What
// cannot be written is kept for the next time.
func (l *Log) flushDenials(all bool) error {
	d, now := &l.denials, l.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	var due []string
	for form, known := range d.recent {
		if all || known.over(now) {
			due = append(due, form)
		}
	}
	slices.SortFunc(due, func(a, b string) int { return d.recent[a].last.Time.Compare(d.recent[b].last.Time) })
	for _, form := range due {
		if err := l.writeCount(d.recent[form]); err != nil {
			return err
		}
		delete(d.recent, form)
	}
	return nil
}
