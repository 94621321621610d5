// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/keyhole-agent/keyhole/secret"
)

// Position is a place in the order of a Scan: after it come the records with a
// greater hint, and those with the same hint and a greater ID.
type Position struct {
	Hint int64  // Empty or Due; 0 in the orders by ID
	ID   string // "" before the first
}

// Cursors are drawn here so that drivers written in Go agree. By ID, ByParent
// and ByTerm it is the ID of the last record; ByEmpty and ByDue it is
//
//	hint with the sign bit flipped, 8 bytes big endian │ ID
//
// which sorts as the records do.

// NextAfter returns Page.Next for a page of q that ends with r and is not the last.
func (q Query) NextAfter(r Record) string {
	switch q.Order {
	case ByEmpty:
		return hintCursor(r.Hints.Empty, r.Key.ID)
	case ByDue:
		return hintCursor(r.Hints.Due, r.Key.ID)
	case ByID, ByParent, ByTerm:
	}
	return r.Key.ID
}

func hintCursor(hint int64, id string) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(hint)^(1<<63))) + id
}

// After returns where the page that q asks for begins, and secret.ErrInvalid for
// a cursor that no page of this order could have returned.
func (q Query) After() (Position, error) {
	byHint := q.Order == ByEmpty || q.Order == ByDue
	cursor := q.Cursor
	if cursor == "" {
		if byHint {
			return Position{Hint: math.MinInt64}, nil
		}
		return Position{}, nil
	}
	var hint int64
	if byHint {
		if len(cursor) < 8 {
			return Position{}, fmt.Errorf("%w: scan cursor of %d bytes", secret.ErrInvalid, len(cursor))
		}
		hint = int64(binary.BigEndian.Uint64([]byte(cursor[:8])) ^ (1 << 63))
		cursor = cursor[8:]
	}
	if len(cursor) < 1 || len(cursor) > MaxIDBytes {
		return Position{}, fmt.Errorf("%w: scan cursor with a key of %d bytes", secret.ErrInvalid, len(cursor))
	}
	return Position{Hint: hint, ID: cursor}, nil
}

// WholeBatches cuts changes, which begin with a batch and are in order, to at
// most limit of them without splitting a batch. The first batch stays whole
// even when it is longer, so that whoever follows the changes gets on.
func WholeBatches(changes []Change, limit int) []Change {
	if len(changes) <= limit {
		return changes
	}
	end := limit
	for end > 0 && changes[end-1].Seq == changes[end].Seq {
		end--
	}
	if end == 0 {
		for end < len(changes) && changes[end].Seq == changes[0].Seq {
			end++
		}
	}
	return changes[:end]
}
