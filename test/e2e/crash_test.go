// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyhole-agent/keyhole/backend/sqlite"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket/client"
)

// promised is what was acknowledged: the value of each version of each secret.
type promised struct {
	mu     sync.Mutex
	values map[string]map[secret.Version]string
	count  int
	enough chan struct{} // closed when count reaches goal
	goal   int
}

// await makes goal more acknowledgements the ones to wait for.
func (p *promised) await(goal int) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.goal, p.enough = p.count+goal, make(chan struct{})
	return p.enough
}

func (p *promised) add(path string, version secret.Version, value string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.values[path] == nil {
		p.values[path] = map[secret.Version]string{}
	}
	if before, taken := p.values[path][version]; taken {
		return fmt.Errorf("version %d of %s was acknowledged twice, for %q and for %q", version, path, before, value)
	}
	p.values[path][version] = value
	if p.count++; p.count == p.goal {
		close(p.enough)
	}
	return nil
}

const writers = 6

func TestWhatWasAcknowledgedSurvivesKills(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	promises := &promised{values: map[string]map[secret.Version]string{}}
	for round := range rounds(5, 100) {
		writeUntil(t, d, d.kill, promises, round)
		d.as(root).cat(d.file("crash/shared", "key")).cannot("not connected")
		d = startDev(t, d.dir)
		everythingIsThere(t, d, promises)
		d.verifies()
		last := fmt.Sprintf("after %d", round)
		d.as(root).keyhole("secret", "put", "crash/after", "key="+last).ok()
		d.as(root).cat(d.file("crash/after", "key")).says(last)
	}
	d.stop()
	nothingIsLeft(t, d)
	store, err := sqlite.Open(sqlite.Config{Path: d.path("store", "keyhole.db"), MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(store.Check(t.Context()), store.Close()); err != nil {
		t.Error(err)
	}
}

// An end in good order is an end in the middle of writes, too.
func TestWhatWasAcknowledgedSurvivesAStop(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	promises := &promised{values: map[string]map[secret.Version]string{}}
	for round := range rounds(3, 30) {
		writeUntil(t, d, d.stop, promises, round)
		nothingIsLeft(t, d)
		d = startDev(t, d.dir)
		everythingIsThere(t, d, promises)
		d.verifies()
	}
}

// writeUntil lets writers write, some of them to the same secret, and ends the
// agent while they do.
func writeUntil(t *testing.T, d *daemon, end func(), promises *promised, round int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	enough := promises.await(20 + rand.IntN(150))
	var ending atomic.Bool
	var running sync.WaitGroup
	for writer := range writers {
		path := "crash/shared"
		if writer%2 == 0 {
			path = fmt.Sprintf("crash/writer%d", writer)
		}
		c := d.client()
		running.Go(func() {
			for n := 0; ; n++ {
				value := fmt.Sprintf("round %d, writer %d, write %d", round, writer, n)
				version, err := put(ctx, c, path, "key", value)
				if err != nil {
					if !ending.Load() {
						t.Errorf("writing failed while the agent ran: %v", err)
						cancel()
					}
					return
				}
				if err := promises.add(path, version, value); err != nil {
					t.Error(err)
				}
			}
		})
	}
	select {
	case <-enough:
	case <-ctx.Done():
	}
	ending.Store(true)
	end()
	running.Wait()
	if ctx.Err() != nil {
		t.Fatal("the writers did not get far enough")
	}
}

func everythingIsThere(t *testing.T, d *daemon, promises *promised) {
	t.Helper()
	c := d.client()
	for path, versions := range promises.values {
		for version, want := range versions {
			if got, err := get(t.Context(), c, path, "key", version); err != nil || got != want {
				t.Errorf("%s: version %d is %q, %v; acknowledged was %q", path, version, got, err, want)
			}
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	closeClient(t, c)
}

func closeClient(t *testing.T, c *client.Client) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
