// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"database/sql/driver"
	"fmt"

	"github.com/keyhole-agent/keyhole/backend"
)

// scanStatement returns the statement for a page, which asks for one record more
// than the page may have: that one tells whether there are others. Each order
// but ByTerm reads an index from the cursor on.
func scanStatement(q backend.Query) (text string, args []driver.Value, err error) {
	after, err := q.After()
	if err != nil {
		return "", nil, err
	}
	id := driver.Value([]byte(after.ID))
	var where, order string
	switch q.Order {
	case backend.ByParent:
		where, order = "parent = ? AND id > ?", "id"
		args = []driver.Value{[]byte(q.Parent), id}
	case backend.ByEmpty:
		where, order = "(empty, id) > (?, ?) AND empty <= ?", "empty, id"
		args = []driver.Value{after.Hint, id, q.Until}
	case backend.ByDue:
		where, order = "(due, id) > (?, ?) AND due <= ?", "due, id"
		args = []driver.Value{after.Hint, id, q.Until}
	case backend.ByTerm:
		where, order = "id > ? AND term < ?", "id"
		args = []driver.Value{id, int64(q.Term)}
	case backend.ByID:
		where, order = "id > ?", "id"
		args = []driver.Value{id}
	}
	text = fmt.Sprintf("SELECT id, %s FROM %s WHERE %s ORDER BY %s LIMIT ?", recordColumns, q.Table, where, order)
	return text, append(args, int64(q.Limit)+1), nil
}
