// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// connected accepts a connection on a stage.
func connected(t *testing.T, s *stage, conn *net.UnixConn) identity.Connection {
	t.Helper()
	c, err := s.Accept(conn)
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

func called(t *testing.T, c identity.Connection, paths ...string) identity.Caller {
	t.Helper()
	caller, err := c.Caller(t.Context())
	must(t, err)
	sameIDs(t, caller, paths...)
	return caller
}

func refused(t *testing.T, c identity.Connection, want error) identity.Caller {
	t.Helper()
	caller, err := c.Caller(t.Context())
	if !errors.Is(err, want) || len(caller.IDs) != 0 || caller.Source != identity.Peer {
		t.Fatalf("got %+v, %v, want %v", caller, err, want)
	}
	return caller
}

func TestAConnectionIsItsConnector(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{})
		path, accept := listen(t)
		a := start(t, program(t), 0)
		a.tell("connect "+path, "done")
		c := connected(t, s, accept())
		if caller := called(t, c, idOf(a.pid)); caller.Source != identity.Peer || caller.Process.PID != a.pid {
			t.Errorf("the caller is %+v", caller)
		}
		called(t, c, idOf(a.pid))
		s.expect(t, a.pid, idOf(a.pid)) // the mount knows it too
		s.asked(t, 1)
		s.clock.set(time.Minute)
		called(t, c, idOf(a.pid))
		s.asked(t, 2)
	})
}

func TestAConnectionIsDeniedOnceItsConnectorChanged(t *testing.T) {
	asRoot(t)
	other := program(t)
	for _, c := range []struct{ change, answer string }{
		{"exec " + other, "ready"},
		{"uid 1001", "done"},
		{"fsuid 1001", "done"},
	} {
		t.Run(c.change, func(t *testing.T) {
			onEachKernel(t, func(t *testing.T, k kernel) {
				s := newStage(t, k, Config{})
				path, accept := listen(t)
				a := start(t, program(t), 0)
				a.tell("connect "+path, "done")
				conn := connected(t, s, accept())
				called(t, conn, idOf(a.pid))
				a.tell(c.change, c.answer)
				refused(t, conn, secret.ErrDenied)
				s.asked(t, 1)
			})
		})
	}
}

func TestNewGroupsAreSeenWhenTheBrokerWouldBeAsked(t *testing.T) {
	asRoot(t)
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{})
		path, accept := listen(t)
		a := start(t, program(t), 0)
		a.tell("connect "+path, "done")
		conn := connected(t, s, accept())
		called(t, conn, idOf(a.pid))
		a.tell("group 7", "done")
		s.clock.set(time.Minute)
		refused(t, conn, secret.ErrDenied)
	})
}

func TestAConnectorThatBecameASetUIDProgramIsDeniedAndNamed(t *testing.T) {
	asRoot(t)
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{})
		path, accept := listen(t)
		a := start(t, program(t), 1001)
		a.tell("connect "+path, "done")
		a.tell("exec "+setUID(t), "ready")
		if caller := refused(t, connected(t, s, accept()), secret.ErrDenied); caller.Process.PID != a.pid {
			t.Errorf("for the audit log it is %+v", caller.Process)
		}
		s.asked(t, 0)
	})
}

func TestAPassedConnectionStaysItsConnectors(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{})
		path, accept := listen(t)
		a := start(t, program(t), 0)
		child := a.tell("hand "+path, "handed")
		c := connected(t, s, accept())
		if caller := called(t, c, idOf(a.pid)); caller.Process.PID == child {
			t.Error("the caller is who was handed the connection")
		}
		a.kill()
		refused(t, c, secret.ErrDenied)
	})
}

func TestAnInheritedConnectionIsDeniedOnceItsConnectorIsGone(t *testing.T) {
	asRoot(t)
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{})
		path, accept := listen(t)
		binary := program(t)
		a := start(t, binary, 0)
		a.tell("connect "+path, "done")
		c := connected(t, s, accept())
		called(t, c, idOf(a.pid))
		a.leave()
		refused(t, c, secret.ErrDenied)
		start(t, binary, 0).tell("as "+strconv.Itoa(a.pid), "child")
		refused(t, c, secret.ErrDenied)
		s.asked(t, 1)
	})
}

func TestWeAreNobodysPeer(t *testing.T) {
	s := newStage(t, kernel{}, Config{})
	path, accept := listen(t)
	var dialer net.Dialer
	client, err := dialer.DialContext(t.Context(), "unix", path)
	must(t, err)
	defer func() { must(t, client.Close()) }()
	server := accept()
	refused(t, connected(t, s, server), secret.ErrDenied)
	p, err := PeerOf(server) // which is for the caller to judge
	must(t, err)
	p.Close()
}

func TestAClosedConnectionIsDenied(t *testing.T) {
	s := newStage(t, kernel{}, Config{})
	path, accept := listen(t)
	a := start(t, program(t), 0)
	a.tell("connect "+path, "done")
	c := connected(t, s, accept())
	must(t, c.Close())
	refused(t, c, secret.ErrDenied)
}

func TestAConnectionWaitsForTheBrokerNoLongerThanTheDeadline(t *testing.T) {
	s := newStage(t, kernel{}, Config{Deadline: 50 * time.Millisecond})
	path, accept := listen(t)
	a := start(t, program(t), 0)
	a.tell("connect "+path, "done")
	s.broker.says(hang(make(chan struct{}, 1)))
	refused(t, connected(t, s, accept()), secret.ErrUnavailable)
}

// hang is a broker that says when it was asked, and answers nothing.
func hang(asked chan<- struct{}) func(context.Context, int) (identity.Grant, error) {
	return func(ctx context.Context, _ int) (identity.Grant, error) {
		asked <- struct{}{}
		<-ctx.Done()
		return identity.Grant{}, ctx.Err()
	}
}
