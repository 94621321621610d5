// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"testing"
	"time"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/backend/backendtest"
)

func TestKeepsThePromisesOfThePort(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		b, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

func TestABatchIDIsForgottenAfterADay(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	b, err := New(Config{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	batch := backend.Batch{ID: [16]byte{1}}
	for _, step := range []struct {
		after    time.Duration
		replayed bool
	}{{0, false}, {backend.KeptBatches, true}, {time.Second, true}, {0, false}} {
		// A commit forgets after it looked, so that it takes one more to notice.
		now = now.Add(step.after)
		results, err := b.Commit(t.Context(), []backend.Batch{batch})
		if err != nil {
			t.Fatal(err)
		}
		if results[0].Replayed != step.replayed {
			t.Fatalf("%v later: %+v", step.after, results[0])
		}
	}
}
