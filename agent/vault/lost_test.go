// SPDX-License-Identifier: Apache-2.0

package vault_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

// lossy is a backend whose answers get lost, as when a connection or a disk
// fails: the one thing that a real store does not do when asked.
type lossy struct {
	backend.Backend
	loseCommit bool // commits happen, and are then reported as failed
	loseBefore bool // commits fail, and do not happen
	loseGet    bool
}

var errLost = errors.New("the answer was lost")

func (l *lossy) Commit(ctx context.Context, batches []backend.Batch) ([]backend.Result, error) {
	if l.loseBefore {
		return nil, errLost
	}
	results, err := l.Backend.Commit(ctx, batches)
	if err == nil && l.loseCommit {
		return nil, errLost
	}
	return results, err
}

func (l *lossy) Get(ctx context.Context, keys []backend.Key) ([]backend.Record, backend.Seq, error) {
	if l.loseGet && keys[0].Table == backend.Applied {
		return nil, 0, errLost
	}
	return l.Backend.Get(ctx, keys)
}

func TestAWriteWhoseAnswerWasLostIsFoundToHaveHappened(t *testing.T) {
	b := &lossy{Backend: drivers["sqlite"](t), loseCommit: true}
	f := newFixture(t, b)
	info, err := f.Put(t.Context(), as(root), path("a"), values(t, "password", "1"))
	check(t, err)
	if info.Current != 1 || info.Revision == 0 {
		t.Errorf("%+v", info)
	}
	got, err := f.password(t, root, "a", 0)
	check(t, err)
	if got != "1" {
		t.Errorf("got %q", got)
	}
}

func TestAWriteThatFailedIsLoggedAsFailed(t *testing.T) {
	b := &lossy{Backend: drivers["memory"](t), loseBefore: true}
	f := newFixture(t, b)
	_, err := f.Put(t.Context(), as(root), path("a"), values(t, "password", "1"))
	wantError(t, err, errLost)
	if !slices.Contains(f.records(t), "putoutcome error a administrators") {
		t.Errorf("%q", f.records(t))
	}
	b.loseBefore = false
	_, err = f.password(t, root, "a", 0)
	wantError(t, err, secret.ErrNotFound)
}

func TestAWriteOfUnknownFateIsSettledByTheNextOne(t *testing.T) {
	b := &lossy{Backend: drivers["sqlite"](t)}
	f := newFixture(t, b)
	b.loseCommit, b.loseGet = true, true
	_, err := f.Put(t.Context(), as(root), path("a"), values(t, "password", "1"))
	wantError(t, err, errLost)
	_, err = f.Put(t.Context(), as(root), path("b"), values(t, "password", "2"))
	wantError(t, err, errLost)
	b.loseCommit, b.loseGet = false, false
	f.put(t, "c", "password", "3")
	got, err := f.password(t, root, "a", 0)
	check(t, err)
	if got != "1" {
		t.Errorf("got %q", got)
	}
	_, err = f.password(t, root, "b", 0)
	wantError(t, err, secret.ErrNotFound)
	if !slices.Contains(f.records(t), "putoutcome allowed a administrators") {
		t.Errorf("the outcome is not in the audit log: %q", f.records(t))
	}
}

func TestAWriteOfUnknownFateIsSettledByTheNextStart(t *testing.T) {
	b := &lossy{Backend: drivers["sqlite"](t)}
	f := newFixture(t, b)
	b.loseCommit, b.loseGet = true, true
	_, err := f.Put(t.Context(), as(root), path("a"), values(t, "password", "1"))
	wantError(t, err, errLost)
	check(t, f.Close())
	check(t, f.log.Close())
	b.loseCommit, b.loseGet = false, false
	f.reopenLog(t)
	f.open(t)
	got, err := f.password(t, root, "a", 0)
	check(t, err)
	if got != "1" {
		t.Errorf("got %q", got)
	}
	if !slices.Contains(f.records(t), "putoutcome allowed a administrators") {
		t.Errorf("the outcome is not in the audit log: %q", f.records(t))
	}
	if unfinished := f.log.Unfinished(); len(unfinished) > 0 {
		t.Errorf("%d intents have no outcome", len(unfinished))
	}
}
