// SPDX-License-Identifier: Apache-2.0

package vault

import (
	"context"
	"fmt"
	"sync"

	"github.com/keyhole-agent/keyhole/secret"
)

// maxPending is how many changed paths a follower may fall behind by before it
// is told to look at everything again.
const maxPending = 10_000

// Feed tells one follower which paths changed. It keeps each path once, so a
// slow follower costs bounded memory and sees the latest state, not each step.
type Feed struct {
	feeds *feeds

	mu      sync.Mutex
	pending map[secret.Path]struct{}
	all     bool
	wake    chan struct{} // has one place
}

// Next waits for the next changes. Its error is that of ctx.
func (f *Feed) Next(ctx context.Context) (secret.Changes, error) {
	for {
		select {
		case <-ctx.Done():
			return secret.Changes{}, fmt.Errorf("following changes: %w", context.Cause(ctx))
		case <-f.wake:
		}
		if changes, any := f.take(); any {
			return changes, nil
		}
	}
}

// Close ends the following.
func (f *Feed) Close() {
	f.feeds.mu.Lock()
	defer f.feeds.mu.Unlock()
	delete(f.feeds.live, f)
}

func (f *Feed) take() (secret.Changes, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	changes := secret.Changes{All: f.all}
	for p := range f.pending {
		changes.Paths = append(changes.Paths, p)
	}
	f.all, f.pending = false, map[secret.Path]struct{}{}
	return changes, changes.All || len(changes.Paths) > 0
}

func (f *Feed) add(changes secret.Changes) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = f.all || changes.All
	for _, p := range changes.Paths {
		f.pending[p] = struct{}{}
	}
	if f.all || len(f.pending) > maxPending {
		f.all, f.pending = true, map[secret.Path]struct{}{}
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

type feeds struct {
	mu   sync.Mutex
	live map[*Feed]struct{}
}

func (fs *feeds) publish(changes secret.Changes) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for f := range fs.live {
		f.add(changes)
	}
}

// Follow begins a feed of changes. Lock order: feeds.mu before Feed.mu.
func (v *Vault) Follow() *Feed {
	f := &Feed{feeds: &v.feeds, pending: map[secret.Path]struct{}{}, wake: make(chan struct{}, 1)}
	v.feeds.mu.Lock()
	defer v.feeds.mu.Unlock()
	v.feeds.live[f] = struct{}{}
	return f
}
