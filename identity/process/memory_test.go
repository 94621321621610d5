// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"log/slog"
	"testing"

	"github.com/keyhole-agent/keyhole/secret"
)

// exitLog receives the numbers of processes that the table forgot.
type exitLog chan int64

func (l exitLog) Enabled(context.Context, slog.Level) bool { return true }
func (l exitLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l exitLog) WithGroup(string) slog.Handler            { return l }

func (l exitLog) Handle(_ context.Context, record slog.Record) error {
	if record.Message == "a known process exited" {
		record.Attrs(func(a slog.Attr) bool {
			l <- a.Value.Int64()
			return true
		})
	}
	return nil
}

func TestAProcessIsForgottenWhenItExits(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		exited := make(exitLog, 8)
		s := newStage(t, k, Config{Logger: slog.New(exited)})
		path := program(t)
		before := descriptors(t)
		for range 3 {
			a := start(t, path, 0)
			s.expect(t, a.pid, idOf(a.pid))
			a.end()
			if pid := <-exited; pid != int64(a.pid) {
				t.Errorf("process %d is said to have exited, not %d", pid, a.pid)
			}
			if len(s.known) != 0 {
				t.Error("it is still known")
			}
		}
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors are open, %d were before", after, before)
		}
	})
}

func TestOnlySoManyProcessesAreRemembered(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{MaxProcesses: 3})
		path := program(t)
		actors := make([]*actor, 5)
		for i := range actors {
			actors[i] = start(t, path, 0)
		}
		before := descriptors(t)
		for _, a := range actors[:3] {
			s.expect(t, a.pid, idOf(a.pid))
		}
		s.expect(t, actors[0].pid, idOf(actors[0].pid)) // the oldest, used again
		for _, a := range actors[3:] {
			s.expect(t, a.pid, idOf(a.pid))
		}
		if len(s.known) != 3 || descriptors(t) != before+2*3 {
			t.Errorf("%d processes are known, with %d descriptors", len(s.known), descriptors(t)-before)
		}
		for i, known := range []bool{true, false, false, true, true} {
			if (s.known[actors[i].pid] != nil) != known {
				t.Errorf("process %d: known %t", i, !known)
			}
		}
		s.asked(t, 5)
		s.expect(t, actors[1].pid, idOf(actors[1].pid)) // forgotten is not denied
		s.asked(t, 6)
	})
}

func TestNothingIsServedAfterClose(t *testing.T) {
	s := newStage(t, kernel{}, Config{})
	a := start(t, program(t), 0)
	s.expect(t, a.pid, idOf(a.pid))
	must(t, s.Close())
	s.refuse(t, a.pid, secret.ErrUnavailable)
}

func TestCloseEndsAQuestionToTheBroker(t *testing.T) {
	s := newStage(t, kernel{}, Config{})
	a := start(t, program(t), 0)
	asking, answered := make(chan struct{}), make(chan error)
	s.broker.says(hang(asking))
	go func() {
		_, err := s.Thread(context.Background(), uint32(a.pid))
		answered <- err
	}()
	<-asking
	must(t, s.Close())
	if err := <-answered; err == nil {
		t.Error("it was identified")
	}
}
