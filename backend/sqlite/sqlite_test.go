// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"path/filepath"
	"testing"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/backend/backendtest"
)

// openStore opens the store at path and closes it when the test ends.
func openStore(t testing.TB, path string) *Backend {
	t.Helper()
	b, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return b
}

// newPath returns where a new store can be made.
func newPath(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "store", "keyhole.db")
}

func TestKeepsThePromisesOfThePort(t *testing.T) {
	backendtest.RunDurable(t, func(t *testing.T) backendtest.Opener {
		path := newPath(t)
		return func(t *testing.T) backend.Backend {
			b, err := Open(Config{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	})
}

func TestKillingTheProcessLosesNothingAcknowledged(t *testing.T) {
	backendtest.RunKilled(t, func(folder string) (backend.Backend, error) {
		return Open(Config{Path: filepath.Join(folder, "store", "keyhole.db")})
	})
}
