// SPDX-License-Identifier: Apache-2.0

package vault

import (
	"container/list"
	"sync"

	"github.com/keyhole-agent/keyhole/backend"
)

// cache keeps sealed records, the most recently used ones up to a number of
// bytes. It never holds plaintext.
//
// A reader that misses takes a ticket before it asks the backend, and the cache
// drops what comes with a ticket from before the last invalidation: an answer
// that was on its way while a commit happened may be the old one.
type cache struct {
	mu     sync.Mutex
	bytes  int
	limit  int
	ticket uint64
	byKey  map[backend.Key]*list.Element
	recent list.List // of backend.Record, the most recent first
}

// recordOverhead is about what a record costs beyond its bytes.
const recordOverhead = 200

func newCache(limit int) *cache {
	return &cache{limit: limit, byKey: map[backend.Key]*list.Element{}}
}

// get appends the records of all keys to found, in order, or reports that one
// is missing, with the ticket to put it with.
func (c *cache) get(found []backend.Record, keys []backend.Key) ([]backend.Record, uint64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range keys {
		element, ok := c.byKey[key]
		if !ok {
			return nil, c.ticket, false
		}
		c.recent.MoveToFront(element)
		found = append(found, element.Value.(backend.Record))
	}
	return found, c.ticket, true
}

func (c *cache) put(ticket uint64, records []backend.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ticket != c.ticket {
		return
	}
	for _, r := range records {
		if cost(r) > c.limit/16 {
			continue // one large record is not worth many small ones
		}
		if element, ok := c.byKey[r.Key]; ok {
			c.removeLocked(element)
		}
		c.byKey[r.Key] = c.recent.PushFront(r)
		c.bytes += cost(r)
	}
	for c.bytes > c.limit {
		c.removeLocked(c.recent.Back())
	}
}

// invalidate forgets the keys that a commit wrote.
func (c *cache) invalidate(ops []backend.Op) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ticket++
	for _, op := range ops {
		if element, ok := c.byKey[op.Record.Key]; ok {
			c.removeLocked(element)
		}
	}
}

func (c *cache) removeLocked(element *list.Element) {
	r := c.recent.Remove(element).(backend.Record)
	delete(c.byKey, r.Key)
	c.bytes -= cost(r)
}

func cost(r backend.Record) int { return recordOverhead + len(r.Key.ID) + len(r.Body) }
