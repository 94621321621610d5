// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"testing"
	"time"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

func TestAnEmptyAnswerEndsWhatWasKnown(t *testing.T) {
	s := newStage(t, kernel{}, Config{TTL: 10 * time.Second})
	a := start(t, program(t), 0)
	s.expect(t, a.pid, idOf(a.pid))
	s.clock.set(10 * time.Second)
	s.broker.says(func(context.Context, int) (identity.Grant, error) { return identity.Grant{}, nil })
	s.refuse(t, a.pid, secret.ErrDenied)
	s.broker.isDown() // no grace for what was taken away
	s.refuse(t, a.pid, secret.ErrUnavailable)
}

func TestAnUnknownProcessIsUnavailableWithoutABroker(t *testing.T) {
	s := newStage(t, kernel{}, Config{})
	s.broker.isDown()
	a := start(t, program(t), 0)
	if caller := s.refuse(t, a.pid, secret.ErrUnavailable); caller.Process.PID != a.pid {
		t.Errorf("for the audit log it is %+v", caller.Process)
	}
}

func TestAKnownProcessIsServedInItsGrace(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{TTL: 10 * time.Second})
		a := start(t, program(t), 0)
		s.expect(t, a.pid, idOf(a.pid))
		s.broker.isDown()
		s.clock.set(10 * time.Second)
		s.expect(t, a.pid, idOf(a.pid))
		s.expect(t, a.pid, idOf(a.pid))
		s.asked(t, 2) // not at every request
		s.clock.set(11 * time.Second)
		s.expect(t, a.pid, idOf(a.pid))
		s.asked(t, 3)
		s.clock.set(30*time.Second - 1)
		s.expect(t, a.pid, idOf(a.pid))
		s.clock.set(30 * time.Second)
		s.refuse(t, a.pid, secret.ErrUnavailable)
		s.broker.says(nil)
		s.expect(t, a.pid, idOf(a.pid))
	})
}

func TestGraceEndsWithTheGrant(t *testing.T) {
	s := newStage(t, kernel{}, Config{TTL: 10 * time.Second})
	s.broker.says(func(context.Context, int) (identity.Grant, error) {
		g := grant("/web")
		g.Expires = epoch.Add(15 * time.Second)
		return g, nil
	})
	a := start(t, program(t), 0)
	s.expect(t, a.pid, "/web")
	s.broker.isDown()
	s.clock.set(15*time.Second - 1)
	s.expect(t, a.pid, "/web")
	s.clock.set(15 * time.Second)
	s.refuse(t, a.pid, secret.ErrUnavailable)
}

func TestThereIsNoGraceForAChangedProcess(t *testing.T) {
	s := newStage(t, kernel{}, Config{})
	a := start(t, program(t), 0)
	s.expect(t, a.pid, idOf(a.pid))
	s.broker.isDown()
	a.tell("exec "+program(t), "ready")
	s.refuse(t, a.pid, secret.ErrUnavailable)
}

func TestABrokerThatHangsIsGraceToo(t *testing.T) {
	s := newStage(t, kernel{}, Config{TTL: 10 * time.Second, Deadline: 200 * time.Millisecond})
	a := start(t, program(t), 0)
	s.expect(t, a.pid, idOf(a.pid))
	s.broker.says(func(ctx context.Context, _ int) (identity.Grant, error) {
		<-ctx.Done()
		return identity.Grant{}, ctx.Err()
	})
	s.clock.set(10 * time.Second)
	s.expect(t, a.pid, idOf(a.pid))
	s.clock.set(30 * time.Second)
	s.refuse(t, a.pid, secret.ErrUnavailable)
}
