// SPDX-License-Identifier: Apache-2.0

package backend

import "context"

// Compacter is a Backend that can make destroyed records leave its files.
type Compacter interface {
	// Compact returns when bytes of deleted or overwritten records are in none
	// of the store's files. It may run for long and lets commits pass between
	// its steps.
	Compact(ctx context.Context) error
}

// Checker is a Backend that can examine its own storage.
type Checker interface {
	// Check reads the whole store. secret.ErrTampered names what is damaged.
	Check(ctx context.Context) error
}

// Direct makes a Store of a Backend, for Update: each batch is a commit of its
// own.
type Direct struct{ Backend }

var _ Store = Direct{}

// Apply commits one batch.
func (d Direct) Apply(ctx context.Context, batch Batch) (Result, error) {
	results, err := d.Commit(ctx, []Batch{batch})
	if err != nil {
		return Result{}, err
	}
	return results[0], nil
}
