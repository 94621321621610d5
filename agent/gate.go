// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// selfCheckPause is how long a failed check of the broker waits to be tried
// again.
const selfCheckPause = time.Second

// selfCheckTimeout is how long one check may take.
const selfCheckTimeout = 3 * time.Second

// selfChecker is a broker that can be asked about ourselves.
type selfChecker interface {
	identity.Attestor
	CheckSelf(ctx context.Context) error
}

// gate lets no process be identified before the broker, asked about our own
// process, answered with our own SPIFFE ID. A broker that sees other processes
// under the same numbers, as in another pid namespace, would give one
// workload's secrets to another.
type gate struct {
	broker selfChecker
	logger *slog.Logger
	state  atomic.Pointer[error] // why it is shut; a nil error inside when it is open
	open   chan struct{}         // closed when it is open

	stop context.CancelFunc
	done sync.WaitGroup
}

func openGate(ctx context.Context, broker selfChecker, ready <-chan struct{}, logger *slog.Logger) *gate {
	g := &gate{broker: broker, logger: logger, open: make(chan struct{})}
	g.set(errors.New("the agent has no SVID yet, so it cannot ask the broker"))
	ctx, g.stop = context.WithCancel(context.WithoutCancel(ctx))
	g.done.Go(func() { g.check(ctx, ready) })
	return g
}

func (g *gate) check(ctx context.Context, ready <-chan struct{}) {
	select {
	case <-ctx.Done():
		return
	case <-ready:
	}
	g.set(errors.New("the broker has not answered yet"))
	for {
		err := g.ask(ctx)
		if err == nil {
			g.set(nil)
			close(g.open)
			g.logger.Info("the broker knows this process by its own SPIFFE ID; workloads can be identified")
			return
		}
		if ctx.Err() != nil {
			return
		}
		// Whatever is wrong is wrong with us, not with who asks.
		shut := fmt.Errorf("the broker has not proven that it sees the same processes: %w", err)
		if before := g.Err(); before == nil || before.Error() != shut.Error() {
			g.logger.Error("no workload can be identified", "error", shut)
		}
		g.set(shut)
		select {
		case <-ctx.Done():
			return
		case <-time.After(selfCheckPause):
		}
	}
}

// ask is one attempt, so that an operator is told of a broker that is not there.
func (g *gate) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, selfCheckTimeout)
	defer cancel()
	return g.broker.CheckSelf(ctx)
}

func (g *gate) set(err error) { g.state.Store(&err) }

// Err returns why no process can be identified, or nil. It is for people.
func (g *gate) Err() error { return *g.state.Load() }

// Attest asks the broker, once it is proven.
func (g *gate) Attest(ctx context.Context, pid int) (identity.Grant, error) {
	if err := g.Err(); err != nil {
		return identity.Grant{}, unavailable{err}
	}
	return g.broker.Attest(ctx, pid)
}

// Health asks the broker about our own process, as it would be asked about
// another, and returns why that does not work, or nil.
func (g *gate) Health(ctx context.Context) error {
	_, err := g.Attest(ctx, os.Getpid())
	return err
}

// Close ends the check.
func (g *gate) Close() error {
	g.stop()
	g.done.Wait()
	return nil
}

// unavailable is secret.ErrUnavailable and hides what else an error is: a broker
// that denies us is not a broker that denies the process it was asked about.
type unavailable struct{ err error }

func (u unavailable) Error() string { return u.err.Error() }

func (u unavailable) Is(target error) bool { return target == secret.ErrUnavailable }

// noBroker is the attestor of an agent without one.
type noBroker struct{}

func (noBroker) Attest(context.Context, int) (identity.Grant, error) {
	return identity.Grant{}, unavailable{errors.New("no broker is configured (identity.broker), so processes cannot be identified; offer an X.509-SVID on the socket")}
}

// Identifies waits until processes can be identified, and reports whether that
// came before the end of ctx. Without a broker it is at once.
func (a *Agent) Identifies(ctx context.Context) bool {
	if a.gate == nil {
		return true
	}
	select {
	case <-a.gate.open:
		return true
	case <-ctx.Done():
		return false
	}
}
