// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"fmt"
	"time"

	"github.com/keyhole-agent/keyhole/secret"
)

// What every driver remembers at least.
const (
	KeptChanges = 100_000        // changes that Changes can still return
	KeptBatches = 24 * time.Hour // how long the ID of an applied batch is known
)

// Check returns secret.ErrInvalid when no driver could have a record of that
// key: an unknown table, or an ID that is empty or longer than MaxIDBytes.
func (k Key) Check() error {
	if k.Table < Meta || int(k.Table) > len(Tables) {
		return fmt.Errorf("%w: key in unknown %s", secret.ErrInvalid, k.Table)
	}
	if len(k.ID) < 1 || len(k.ID) > MaxIDBytes {
		return fmt.Errorf("%w: key of %d bytes in %s, not 1 to %d", secret.ErrInvalid, len(k.ID), k.Table, MaxIDBytes)
	}
	return nil
}

// CheckKeys checks each key of a Get.
func CheckKeys(keys []Key) error {
	for _, k := range keys {
		if err := k.Check(); err != nil {
			return err
		}
	}
	return nil
}

// Check returns an error when the batch is outside the bounds that every driver
// supports: secret.ErrTooLarge for too many operations and conditions or too
// large a body, secret.ErrInvalid for the rest. Drivers call it first; whoever
// collects batches of several callers into one Commit calls it earlier, since
// one bad batch fails them all.
func (b Batch) Check() error {
	if n := len(b.If) + len(b.Ops); n > MaxBatchOps {
		return fmt.Errorf("%w: batch of %d operations and conditions; at most %d", secret.ErrTooLarge, n, MaxBatchOps)
	}
	for _, c := range b.If {
		if err := c.Key.Check(); err != nil {
			return err
		}
	}
	seen := make(map[Key]struct{}, len(b.Ops))
	for _, op := range b.Ops {
		if err := op.check(); err != nil {
			return err
		}
		if _, doubled := seen[op.Record.Key]; doubled {
			return fmt.Errorf("%w: batch with two operations on one key of %s", secret.ErrInvalid, op.Record.Key.Table)
		}
		seen[op.Record.Key] = struct{}{}
	}
	return nil
}

func (op Op) check() error {
	r := op.Record
	if err := r.Key.Check(); err != nil {
		return err
	}
	if r.Key.Table == Applied {
		return fmt.Errorf("%w: table %s is written by the driver alone", secret.ErrInvalid, Applied)
	}
	if op.Delete {
		return nil
	}
	if len(r.Hints.Parent) > MaxIDBytes {
		return fmt.Errorf("%w: parent of %d bytes; at most %d", secret.ErrInvalid, len(r.Hints.Parent), MaxIDBytes)
	}
	if len(r.Body) > MaxBodyBytes {
		return fmt.Errorf("%w: record body of %d bytes; at most %d", secret.ErrTooLarge, len(r.Body), MaxBodyBytes)
	}
	return nil
}

// Check returns secret.ErrInvalid for a query outside the bounds.
func (q Query) Check() error {
	if q.Table < Meta || int(q.Table) > len(Tables) {
		return fmt.Errorf("%w: scan of unknown %s", secret.ErrInvalid, q.Table)
	}
	if q.Order > ByTerm {
		return fmt.Errorf("%w: scan in unknown order %d", secret.ErrInvalid, q.Order)
	}
	if q.Order == ByParent && (len(q.Parent) < 1 || len(q.Parent) > MaxIDBytes) {
		return fmt.Errorf("%w: scan for a parent of %d bytes, not 1 to %d", secret.ErrInvalid, len(q.Parent), MaxIDBytes)
	}
	if q.Limit < 1 || q.Limit > MaxScanLimit {
		return fmt.Errorf("%w: scan limit %d, not 1 to %d", secret.ErrInvalid, q.Limit, MaxScanLimit)
	}
	_, err := q.After()
	return err
}

// CheckChanges returns secret.ErrInvalid for a limit of Changes that is not 1 to
// MaxScanLimit.
func CheckChanges(limit int) error {
	if limit < 1 || limit > MaxScanLimit {
		return fmt.Errorf("%w: limit of %d changes, not 1 to %d", secret.ErrInvalid, limit, MaxScanLimit)
	}
	return nil
}
