// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// expect asks for the caller of a thread, and requires exactly these paths.
func (s *stage) expect(t *testing.T, tid int, paths ...string) identity.Caller {
	t.Helper()
	caller, err := s.Thread(t.Context(), uint32(tid))
	must(t, err)
	sameIDs(t, caller, paths...)
	return caller
}

func sameIDs(t *testing.T, caller identity.Caller, paths ...string) {
	t.Helper()
	var got []string
	for _, id := range caller.IDs {
		got = append(got, id.Path())
	}
	if strings.Join(got, " ") != strings.Join(paths, " ") {
		t.Fatalf("the caller is %v, want %v", got, paths)
	}
}

// refuse asks for the caller of a thread, and requires an error and a caller
// without IDs, which it returns.
func (s *stage) refuse(t *testing.T, tid int, want error) identity.Caller {
	t.Helper()
	caller, err := s.Thread(t.Context(), uint32(tid))
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
	if len(caller.IDs) != 0 || caller.Source == "" {
		t.Fatalf("the refused caller is %+v", caller)
	}
	return caller
}

func (s *stage) asked(t *testing.T, want int64) {
	t.Helper()
	if got := s.broker.asked.Load(); got != want {
		t.Fatalf("the broker was asked %d times, want %d", got, want)
	}
}

func idOf(pid int) string { return "/pid/" + strconv.Itoa(pid) }

func TestAKnownProcessIsNotAskedAboutAgain(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{})
		path := program(t)
		a := start(t, path, 0)
		first := s.expect(t, a.pid, idOf(a.pid))
		second := s.expect(t, a.tell("thread", "thread"), idOf(a.pid))
		s.asked(t, 1)
		if first.Source != identity.Broker || first.Process.Executable != path || first.Process.PID != a.pid {
			t.Errorf("the caller is %+v", first)
		}
		if second.Process != first.Process {
			t.Errorf("from memory the process is %+v, was %+v", second.Process, first.Process)
		}
	})
}

func TestTheTimeToLiveEndsAnAnswer(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{TTL: 20 * time.Second})
		a := start(t, program(t), 0)
		s.expect(t, a.pid, idOf(a.pid))
		s.clock.set(20*time.Second - 1)
		s.expect(t, a.pid, idOf(a.pid))
		s.asked(t, 1)
		s.clock.set(20 * time.Second)
		s.expect(t, a.pid, idOf(a.pid))
		s.asked(t, 2)
	})
}

func TestTheExpiryOfTheGrantEndsAnAnswer(t *testing.T) {
	s := newStage(t, kernel{}, Config{})
	s.broker.says(func(context.Context, int) (identity.Grant, error) {
		g := grant("/web")
		g.Expires = epoch.Add(5 * time.Second)
		return g, nil
	})
	a := start(t, program(t), 0)
	s.expect(t, a.pid, "/web")
	s.clock.set(5*time.Second - 1)
	s.expect(t, a.pid, "/web")
	s.asked(t, 1)
	s.clock.set(5 * time.Second)
	s.refuse(t, a.pid, secret.ErrDenied)
	s.asked(t, 2)
}

func TestAClockSetBackEndsAnAnswer(t *testing.T) {
	s := newStage(t, kernel{}, Config{})
	a := start(t, program(t), 0)
	s.expect(t, a.pid, idOf(a.pid))
	s.clock.set(-time.Second)
	s.expect(t, a.pid, idOf(a.pid))
	s.asked(t, 2)
}

func TestWhatAKnownProcessMayNotChangeUnnoticed(t *testing.T) {
	asRoot(t)
	other := program(t)
	for _, c := range []struct{ change, answer string }{{"exec " + other, "ready"}, {"uid 1001", "done"}} {
		t.Run(c.change, func(t *testing.T) {
			onEachKernel(t, func(t *testing.T, k kernel) {
				s := newStage(t, k, Config{})
				a := start(t, program(t), 0)
				s.expect(t, a.pid, idOf(a.pid))
				a.tell(c.change, c.answer)
				s.broker.says(func(context.Context, int) (identity.Grant, error) { return grant("/changed"), nil })
				s.expect(t, a.pid, "/changed")
				s.asked(t, 2)
			})
		})
	}
}

func TestAKnownProcessThatBecomesASetUIDProgramIsDenied(t *testing.T) {
	asRoot(t)
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{})
		a := start(t, program(t), 1001)
		s.expect(t, a.pid, idOf(a.pid))
		path := setUID(t)
		a.tell("exec "+path, "ready")
		caller := s.refuse(t, a.pid, secret.ErrDenied)
		if caller.Process.PID != a.pid || caller.Process.Executable != path {
			t.Errorf("for the audit log it is %+v", caller.Process)
		}
		s.asked(t, 1)
	})
}

func TestAThreadWithOtherIDsLeavesItsKnownProcessAlone(t *testing.T) {
	asRoot(t)
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{})
		a := start(t, program(t), 0)
		s.expect(t, a.pid, idOf(a.pid))
		s.refuse(t, a.tell("thread 1001", "thread"), secret.ErrDenied)
		s.expect(t, a.pid, idOf(a.pid))
		s.asked(t, 1)
	})
}

func TestNobodyReachesTheBroker(t *testing.T) {
	s := newStage(t, kernel{}, Config{})
	s.refuse(t, 0, secret.ErrDenied)
	if caller := s.refuse(t, os.Getpid(), secret.ErrDenied); caller.Process.PID != os.Getpid() {
		t.Errorf("for the audit log we are %+v", caller.Process)
	}
	s.asked(t, 0)
}

func TestOnlyIDsOfOurTrustDomainWithAPathAreKept(t *testing.T) {
	twin := spiffeid.RequireFromString("spiffe://dev.keyhole.test.evil/web")
	root := spiffeid.RequireFromString("spiffe://dev.keyhole.test")
	many := make([]string, 12)
	for i := range many {
		many[i] = fmt.Sprintf("/n/%d", i)
	}
	for _, c := range []struct {
		name string
		ids  []spiffeid.ID
		want []string
	}{
		{"a federated twin", append(grant("/web").IDs, twin), []string{"/web"}},
		{"the trust domain itself", append(grant("/web").IDs, root), []string{"/web"}},
		{"doubles", grant("/web", "/web").IDs, []string{"/web"}},
		{"too many", grant(many...).IDs, many[:identity.MaxIDs]},
		{"none that counts", []spiffeid.ID{twin, root, {}}, nil},
		{"none", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t, kernel{}, Config{})
			s.broker.says(func(context.Context, int) (identity.Grant, error) {
				return identity.Grant{IDs: c.ids, Expires: epoch.Add(time.Hour)}, nil
			})
			a := start(t, program(t), 0)
			if len(c.want) > 0 {
				s.expect(t, a.pid, c.want...)
				return
			}
			s.refuse(t, a.pid, secret.ErrDenied)
			if len(s.known) != 0 {
				t.Error("a process without IDs is remembered")
			}
		})
	}
}

func TestManyThreadsAskOnce(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{Deadline: time.Minute})
		a := start(t, program(t), 0)
		open := make(chan struct{})
		s.broker.says(func(context.Context, int) (identity.Grant, error) {
			<-open
			return grant("/web"), nil
		})
		var callers sync.WaitGroup
		for range 32 {
			callers.Go(func() {
				caller, err := s.Thread(t.Context(), uint32(a.pid))
				if err != nil || len(caller.IDs) != 1 {
					t.Errorf("got %+v, %v", caller, err)
				}
			})
		}
		close(open)
		callers.Wait()
		s.asked(t, 1)
	})
}

func TestTheDeadlineHoldsForABrokerThatIgnoresIt(t *testing.T) {
	s := newStage(t, kernel{}, Config{Deadline: 50 * time.Millisecond})
	a := start(t, program(t), 0)
	open := make(chan struct{})
	t.Cleanup(func() { close(open) }) // before the table is closed, also after a failure
	s.broker.says(func(context.Context, int) (identity.Grant, error) {
		<-open
		return grant("/web"), nil
	})
	s.refuse(t, a.pid, secret.ErrUnavailable)
	s.refuse(t, a.pid, secret.ErrUnavailable) // waits for the first one's question
	s.asked(t, 1)
}

func TestACancelledRequestIsUnavailable(t *testing.T) {
	s := newStage(t, kernel{}, Config{Deadline: time.Minute})
	a := start(t, program(t), 0)
	ctx, cancel := context.WithCancel(t.Context())
	s.broker.says(func(ctx context.Context, _ int) (identity.Grant, error) {
		cancel()
		<-ctx.Done() // until the table is closed
		return identity.Grant{}, ctx.Err()
	})
	if _, err := s.Thread(ctx, uint32(a.pid)); !errors.Is(err, secret.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestWhatHappensWhileTheBrokerIsAsked(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		one, other := program(t), program(t)
		for name, meanwhile := range map[string]func(a *actor){
			"killed":   func(a *actor) { a.end() },
			"executed": func(a *actor) { a.tell("exec "+other, "ready") },
			"executed and came back": func(a *actor) {
				a.tell("exec "+other, "ready")
				a.tell("exec "+one, "ready")
			},
		} {
			t.Run(name, func(t *testing.T) {
				s := newStage(t, k, Config{})
				a := start(t, one, 0)
				s.broker.says(func(context.Context, int) (identity.Grant, error) {
					meanwhile(a)
					return grant("/web"), nil
				})
				s.refuse(t, a.pid, secret.ErrDenied)
				if len(s.known) != 0 {
					t.Error("it is remembered")
				}
			})
		}
	})
}

func TestANumberThatIsReusedIsAskedAboutAgain(t *testing.T) {
	asRoot(t)
	onEachKernel(t, func(t *testing.T, k kernel) {
		s := newStage(t, k, Config{})
		path := program(t)
		old := start(t, path, 0)
		s.expect(t, old.pid, idOf(old.pid))
		old.end()
		start(t, path, 0).tell("as "+strconv.Itoa(old.pid), "child")
		s.broker.says(func(context.Context, int) (identity.Grant, error) { return grant("/reborn"), nil })
		s.expect(t, old.pid, "/reborn")
		s.asked(t, 2)
	})
}

func TestABadConfigurationIsRefused(t *testing.T) {
	good := func() Config {
		return Config{Attestor: new(broker), TrustDomains: []spiffeid.TrustDomain{domain}}
	}
	for name, spoil := range map[string]func(*Config){
		"no attestor":         func(c *Config) { c.Attestor = nil },
		"no trust domain":     func(c *Config) { c.TrustDomains = nil },
		"an empty one":        func(c *Config) { c.TrustDomains = []spiffeid.TrustDomain{{}} },
		"a long time to live": func(c *Config) { c.TTL = time.Minute + 1 },
		"a negative one":      func(c *Config) { c.TTL = -1 },
		"a negative deadline": func(c *Config) { c.Deadline = -1 },
		"a negative number":   func(c *Config) { c.MaxProcesses = -1 },
	} {
		c := good()
		spoil(&c)
		if _, err := New(c); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
