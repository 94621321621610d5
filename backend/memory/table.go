// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"cmp"
	"math"

	"github.com/tidwall/btree"

	"github.com/keyhole-agent/keyhole/backend"
)

// table holds records by ID, and what a Scan needs to find them in its other
// orders.
type table struct {
	records btree.Map[string, backend.Record]
	parents *btree.BTreeG[child]
	empty   *btree.BTreeG[backend.Position]
	due     *btree.BTreeG[backend.Position]
}

type child struct{ parent, id string }

func newTable() *table {
	options := btree.Options{NoLocks: true} // Backend.mu is the lock
	return &table{
		parents: btree.NewBTreeGOptions(func(a, b child) bool {
			return cmp.Or(cmp.Compare(a.parent, b.parent), cmp.Compare(a.id, b.id)) < 0
		}, options),
		empty: btree.NewBTreeGOptions(before, options),
		due:   btree.NewBTreeGOptions(before, options),
	}
}

func before(a, b backend.Position) bool {
	return cmp.Or(cmp.Compare(a.Hint, b.Hint), cmp.Compare(a.ID, b.ID)) < 0
}

func (t *table) put(r backend.Record) {
	t.remove(r.Key.ID)
	t.records.Set(r.Key.ID, r)
	if r.Hints.Parent != "" {
		t.parents.Set(child{r.Hints.Parent, r.Key.ID})
	}
	if r.Hints.Empty != 0 {
		t.empty.Set(backend.Position{Hint: r.Hints.Empty, ID: r.Key.ID})
	}
	if r.Hints.Due != 0 {
		t.due.Set(backend.Position{Hint: r.Hints.Due, ID: r.Key.ID})
	}
}

// remove tells whether the record was there.
func (t *table) remove(id string) bool {
	r, found := t.records.Delete(id)
	if !found {
		return false
	}
	t.parents.Delete(child{r.Hints.Parent, id})
	t.empty.Delete(backend.Position{Hint: r.Hints.Empty, ID: id})
	t.due.Delete(backend.Position{Hint: r.Hints.Due, ID: id})
	return true
}

func (t *table) hasChildren(parent string) bool {
	found := false
	t.parents.Ascend(child{parent: parent}, func(c child) bool {
		found = c.parent == parent
		return false
	})
	return found
}

// page collects one record more than asked for, to know whether there are more.
func (t *table) page(q backend.Query) (backend.Page, error) {
	after, err := q.After()
	if err != nil {
		return backend.Page{}, err
	}
	var page backend.Page
	t.ascend(q, after, func(r backend.Record) bool {
		page.Records = append(page.Records, r)
		return len(page.Records) <= q.Limit
	})
	if len(page.Records) > q.Limit {
		page.Records = page.Records[:q.Limit]
		page.Next = q.NextAfter(page.Records[q.Limit-1])
	}
	return page, nil
}

// ascend calls yield with the records of q after a position, until it returns
// false.
func (t *table) ascend(q backend.Query, after backend.Position, yield func(backend.Record) bool) {
	byID := func(id string) bool {
		r, _ := t.records.Get(id)
		return yield(r)
	}
	byHint := func(p backend.Position) bool {
		return p == after || (p.Hint <= q.Until && byID(p.ID))
	}
	switch q.Order {
	case backend.ByParent:
		t.parents.Ascend(child{q.Parent, after.ID}, func(c child) bool {
			return c.parent == q.Parent && (c.id == after.ID || byID(c.id))
		})
	case backend.ByEmpty:
		t.empty.Ascend(after, byHint)
	case backend.ByDue:
		t.due.Ascend(after, byHint)
	case backend.ByID, backend.ByTerm:
		below := uint64(math.MaxUint64)
		if q.Order == backend.ByTerm {
			below = uint64(q.Term)
		}
		t.records.Ascend(after.ID, func(id string, r backend.Record) bool {
			return id == after.ID || uint64(r.Hints.Term) >= below || yield(r)
		})
	}
}
