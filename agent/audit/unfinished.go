// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"cmp"
	"maps"
	"slices"
)

// intentKey tells the intents of one batch apart.
type intentKey struct {
	batch [16]byte
	path  string
}

type intent struct {
	index uint64
	event Event
}

// Unfinished returns the intents that have no outcome in the log, in order:
// right after Open, the changes that were under way when the agent stopped. An
// outcome belongs to the intent with its Batch and Path. After opening a sealed
// log, what it returns is to be trusted only once Unlock succeeded.
func (l *Log) Unfinished() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	intents := slices.SortedFunc(maps.Values(l.unfinished), func(a, b intent) int { return cmp.Compare(a.index, b.index) })
	events := make([]Event, len(intents))
	for i := range intents {
		events[i] = intents[i].event
	}
	return events
}

func (l *Log) noteLocked(index uint64, e *Event) {
	switch e.Phase {
	case Intent:
		l.unfinished[intentKey{e.Batch, e.Path}] = intent{index, *e}
	case Outcome:
		delete(l.unfinished, intentKey{e.Batch, e.Path})
	}
}

// oldestLocked returns the index of the earliest unfinished intent, 0 for none.
func (l *Log) oldestLocked() uint64 {
	oldest := uint64(0)
	for _, i := range l.unfinished {
		if oldest == 0 || i.index < oldest {
			oldest = i.index
		}
	}
	return oldest
}
