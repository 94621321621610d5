// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// scriptedBroker answers checks with what the test sends.
type scriptedBroker struct {
	checks chan error
	asked  []int
}

func (b *scriptedBroker) CheckSelf(ctx context.Context) error {
	select {
	case err := <-b.checks:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *scriptedBroker) Attest(_ context.Context, pid int) (identity.Grant, error) {
	b.asked = append(b.asked, pid)
	return identity.Grant{IDs: []spiffeid.ID{nobody}}, nil
}

// gated runs a test with a gate in a bubble of its own time.
func gated(t *testing.T, test func(t *testing.T, g *gate, b *scriptedBroker, ready chan struct{}, log *lockedBuffer)) {
	synctest.Test(t, func(t *testing.T) {
		b, ready, log := &scriptedBroker{checks: make(chan error)}, make(chan struct{}), &lockedBuffer{}
		g := openGate(t.Context(), b, ready, slog.New(slog.NewTextHandler(log, nil)))
		test(t, g, b, ready, log)
		check(t, g.Close())
	})
}

func requireShut(t *testing.T, g *gate, b *scriptedBroker, why string) {
	t.Helper()
	_, err := g.Attest(t.Context(), 1)
	wants(t, err, secret.ErrUnavailable, why)
	wants(t, g.Health(t.Context()), secret.ErrUnavailable, why)
	if errors.Is(err, secret.ErrDenied) {
		t.Error("a broker that is not proven denies somebody")
	}
	if len(b.asked) > 0 {
		t.Errorf("it was asked about %d", b.asked)
	}
}

func TestNobodyIsIdentifiedBeforeTheBrokerIsProven(t *testing.T) {
	gated(t, func(t *testing.T, g *gate, b *scriptedBroker, ready chan struct{}, _ *lockedBuffer) {
		requireShut(t, g, b, "no SVID yet")
		close(ready)
		synctest.Wait()
		requireShut(t, g, b, "has not answered yet")
		time.Sleep(selfCheckTimeout) // of the bubble
		synctest.Wait()
		requireShut(t, g, b, "deadline exceeded")
		b.checks <- nil
		<-g.open
		if grant, err := g.Attest(t.Context(), 7); err != nil || grant.IDs[0] != nobody {
			t.Errorf("%v, %v", grant, err)
		}
		check(t, g.Health(t.Context()))
		if b.asked[0] != 7 || b.asked[1] != os.Getpid() {
			t.Errorf("it was asked about %d", b.asked)
		}
	})
}

func TestABrokerThatSeesAnotherProcessIsAskedAgainUntilItIsProven(t *testing.T) {
	gated(t, func(t *testing.T, g *gate, b *scriptedBroker, ready chan struct{}, log *lockedBuffer) {
		close(ready)
		wrong := fmt.Errorf("%w: our own process is somebody else", secret.ErrDenied)
		for range 3 {
			b.checks <- wrong
			synctest.Wait()
			requireShut(t, g, b, "our own process is somebody else")
		}
		if n := strings.Count(log.String(), "no workload can be identified"); n != 1 {
			t.Errorf("it was said %d times:\n%s", n, log)
		}
		before := time.Now()
		b.checks <- nil
		<-g.open
		if pause := time.Since(before); pause != selfCheckPause {
			t.Errorf("it paused for %s", pause)
		}
		check(t, g.Health(t.Context()))
	})
}

func TestAGateClosesWhateverItWaitsFor(t *testing.T) {
	for name, reach := range map[string]func(chan struct{}, *scriptedBroker){
		"the SVID":   func(chan struct{}, *scriptedBroker) {},
		"the answer": func(ready chan struct{}, _ *scriptedBroker) { close(ready) },
		"the pause":  func(ready chan struct{}, b *scriptedBroker) { close(ready); b.checks <- secret.ErrUnavailable },
	} {
		t.Run(name, func(t *testing.T) {
			gated(t, func(_ *testing.T, _ *gate, b *scriptedBroker, ready chan struct{}, _ *lockedBuffer) {
				reach(ready, b)
				synctest.Wait()
			})
		})
	}
}

func TestWithoutABrokerOnlyAnSVIDHelps(t *testing.T) {
	_, err := noBroker{}.Attest(t.Context(), 1)
	wants(t, err, secret.ErrUnavailable, "identity.broker", "X.509-SVID")
	if a := (&Agent{}); !a.Identifies(t.Context()) {
		t.Error("it waits for a broker that is not configured")
	}
}
