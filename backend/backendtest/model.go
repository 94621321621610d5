// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"cmp"
	"slices"

	"github.com/keyhole-agent/keyhole/backend"
)

// model is what a backend should hold, as simply as it can be said.
type model struct {
	seq     backend.Seq
	records map[backend.Key]backend.Record
	applied map[[16]byte]backend.Seq
	changes []backend.Change
}

func newModel() *model {
	return &model{records: map[backend.Key]backend.Record{}, applied: map[[16]byte]backend.Seq{}}
}

func (m *model) apply(batch backend.Batch) backend.Result {
	if seq, known := m.applied[batch.ID]; known {
		return backend.Result{Seq: seq, Replayed: true}
	}
	for _, c := range batch.If {
		if !m.holds(c) {
			return backend.Result{Conflict: true}
		}
	}
	m.seq++
	for _, op := range batch.Ops {
		r := op.Record
		if _, there := m.records[r.Key]; op.Delete && !there {
			continue
		}
		m.changes = append(m.changes, backend.Change{Seq: m.seq, Key: r.Key, Deleted: op.Delete})
		if op.Delete {
			delete(m.records, r.Key)
			continue
		}
		r.Rev = m.seq
		m.records[r.Key] = r
	}
	if batch.ID != [16]byte{} {
		m.applied[batch.ID] = m.seq
	}
	return backend.Result{Seq: m.seq}
}

func (m *model) holds(c backend.Cond) bool {
	if !c.NoChildren {
		return m.records[c.Key].Rev == c.Rev
	}
	for _, r := range m.records {
		if r.Key.Table == c.Key.Table && r.Hints.Parent == c.Key.ID {
			return false
		}
	}
	return true
}

// get returns the records that exist among keys.
func (m *model) get(keys []backend.Key) (records []backend.Record) {
	for _, k := range keys {
		if r, there := m.records[k]; there {
			records = append(records, r)
		}
	}
	return records
}

// scan returns all records of q, whatever its limit.
func (m *model) scan(q backend.Query) (records []backend.Record) {
	for _, r := range m.records {
		if r.Key.Table == q.Table && selects(q, r.Hints) {
			records = append(records, r)
		}
	}
	slices.SortFunc(records, func(a, b backend.Record) int {
		byHint := 0
		switch q.Order {
		case backend.ByEmpty:
			byHint = cmp.Compare(a.Hints.Empty, b.Hints.Empty)
		case backend.ByDue:
			byHint = cmp.Compare(a.Hints.Due, b.Hints.Due)
		case backend.ByID, backend.ByParent, backend.ByTerm:
		}
		return cmp.Or(byHint, cmp.Compare(a.Key.ID, b.Key.ID))
	})
	return records
}

func selects(q backend.Query, h backend.Hints) bool {
	switch q.Order {
	case backend.ByParent:
		return h.Parent == q.Parent
	case backend.ByEmpty:
		return h.Empty != 0 && h.Empty <= q.Until
	case backend.ByDue:
		return h.Due != 0 && h.Due <= q.Until
	case backend.ByTerm:
		return h.Term < q.Term
	case backend.ByID:
	}
	return true
}

// changesAfter returns all changes after seq.
func (m *model) changesAfter(seq backend.Seq) []backend.Change {
	for i, c := range m.changes {
		if c.Seq > seq {
			return m.changes[i:]
		}
	}
	return nil
}
