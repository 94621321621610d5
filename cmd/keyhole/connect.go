// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/keyhole-agent/keyhole/agent"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket/client"
)

// defaultPatience is longer than the agent takes for a request before it gives
// up by itself.
const defaultPatience = 20 * time.Second

// silence is why a command's context ends when the agent does not answer.
type silence struct{ patience time.Duration }

// Error says for how long.
func (s silence) Error() string {
	return fmt.Sprintf("%v: the agent has not answered for %s; its log may say why", secret.ErrUnavailable, s.patience)
}

// Unwrap returns secret.ErrUnavailable.
func (s silence) Unwrap() error { return secret.ErrUnavailable }

// session is a connection to the agent, for one command.
type session struct {
	*client.Client
	patience time.Duration
	watch    *time.Timer // ends the command
	cancel   context.CancelCauseFunc
}

// expect allows the agent to be silent for so long, from now on.
func (s *session) expect(patience time.Duration) {
	if s.watch != nil {
		s.watch.Stop()
	}
	s.patience = patience
	s.watch = time.AfterFunc(patience, func() { s.cancel(silence{patience}) })
}

// heard begins the wait for the next answer, of several to one request.
func (s *session) heard() { s.watch.Reset(s.patience) }

// connect runs do with a client of the agent that the environment names, or of
// the one that is there by default. The context that do gets ends when the agent
// is silent for too long.
func (p *program) connect(ctx context.Context, do func(context.Context, *session) error) error {
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &session{cancel: cancel}
	s.expect(p.patience + p.wait)
	defer func() { s.watch.Stop() }()
	config, err := p.clientConfig()
	if err != nil {
		return err
	}
	if s.Client, err = client.New(inner, config); err == nil {
		err = do(inner, s)
		if closeErr := s.Close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
	}
	if silent, ok := errors.AsType[silence](context.Cause(inner)); ok && err != nil {
		return fmt.Errorf("%w (%w)", silent, err)
	}
	return connectionAdvice(err, config)
}

// clientConfig says where the agent is. It fails at once when the Workload API,
// for which the client would wait, is not there, unless waiting was asked for.
func (p *program) clientConfig() (client.Config, error) {
	config, err := client.FromEnvironment(p.getenv)
	if err != nil {
		return client.Config{}, err
	}
	standard := agent.DefaultConfig()
	config.Socket = cmp.Or(config.Socket, firstThere(standard.Socket, client.DefaultSocket))
	config.AdminSocket = cmp.Or(config.AdminSocket, firstThere(standard.AdminSocket, client.DefaultAdminSocket))
	if path, local := strings.CutPrefix(config.WorkloadAPI, "unix://"); local && p.wait == 0 {
		probe, err := net.Dial("unix", path) // does not wait
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return client.Config{}, fmt.Errorf("%w: nobody serves the Workload API at %s, which %s names; start the agent or SPIRE, or unset it to be identified by process",
				secret.ErrUnavailable, path, client.WorkloadAPIVariable)
		}
		if err == nil {
			_ = probe.Close() // nothing was sent
		}
	}
	return config, nil
}

// connectionAdvice adds what to do about a connection that there was not, and
// about a refusal.
func connectionAdvice(err error, config client.Config) error {
	if err == nil {
		return nil
	}
	_, answered := errors.AsType[*client.Error](err)
	switch {
	case answered:
		return advised(err, secret.ErrDenied, "keyhole policy explain tells an administrator why")
	case errors.Is(err, secret.ErrDenied):
		return fmt.Errorf("%w; run it as the user that runs the agent", err)
	}
	if _, missing := os.Lstat(config.Socket); missing != nil {
		return advised(err, secret.ErrUnavailable, fmt.Sprintf("start it with keyhole agent or keyhole dev, or name its sockets in %s and %s",
			client.SocketVariable, client.AdminSocketVariable))
	}
	return err
}

// firstThere prefers the user's own agent to the system's.
func firstThere(own, system string) string {
	if _, err := os.Lstat(own); errors.Is(err, fs.ErrNotExist) {
		return system
	}
	return own
}
