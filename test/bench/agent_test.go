// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/keyhole-agent/keyhole/agent"
	"github.com/keyhole-agent/keyhole/identity/workload"
	"github.com/keyhole-agent/keyhole/socket/sockettest"
)

// agentPart is an agent as keyhole dev runs it, and, when asked, an echo in the
// same process: so both have the same heap and the same pauses.
type agentPart struct {
	stop    context.CancelFunc
	stopped chan error

	source *workload.Source
	echo   *sockettest.EchoServer
}

// Start returns when the agent can identify workloads.
func (p *agentPart) Start(dir string, _ *nothing) error {
	if err := agent.Harden(); err != nil {
		return err
	}
	config := agent.LogConfig{Level: "error", Format: "text"}
	logger, level := agent.NewLogger(config, os.Stderr, false)
	ctx, stop := context.WithCancel(context.Background())
	d, err := agent.NewDevelopment(ctx, dir, agent.Options{Version: "benchmark", Logger: logger, Level: level})
	if err != nil {
		stop()
		return err
	}
	p.stop, p.stopped = stop, make(chan error, 1)
	ready := make(chan struct{})
	go func() { p.stopped <- d.Run(ctx, func(string) { close(ready) }) }()
	select {
	case <-ready:
		return nil
	case err := <-p.stopped:
		p.stopped <- nil // for close
		return errors.Join(errors.New("the agent ended"), err)
	}
}

// ServeEcho serves the echo with the agent's SVID.
func (p *agentPart) ServeEcho(dir string, _ *nothing) error {
	var err error
	p.source, err = workload.Open(context.Background(), workload.Config{Address: workloadAPI(dir)})
	if err != nil {
		return err
	}
	<-p.source.Ready()
	path := echoSocket(dir)
	if p.echo, err = sockettest.ServeEcho(path, p.source.ServerTLS()); err != nil {
		return err
	}
	return os.Chmod(path, 0o666)
}

func (p *agentPart) close() error {
	var errs []error
	if p.echo != nil {
		errs = append(errs, p.echo.Close())
	}
	if p.source != nil {
		errs = append(errs, p.source.Close())
	}
	if p.stop != nil {
		p.stop()
		errs = append(errs, <-p.stopped)
	}
	return errors.Join(errs...)
}

// Where things are in the folder of an agent for development.
func workloadAPI(dir string) string { return "unix://" + filepath.Join(dir, "spiffe", "workload.sock") }
func agentSocket(dir string) string { return filepath.Join(dir, "agent.sock") }
func echoSocket(dir string) string  { return filepath.Join(dir, "echo.sock") }

// folder returns an empty folder that every user may enter, whose path is short
// enough for sockets.
func folder(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("", "khb") //nolint:usetesting // the path of TempDir is too long for a socket
	check(b, err)
	b.Cleanup(func() { check(b, os.RemoveAll(dir)) })
	check(b, os.Chmod(dir, 0o755)) // workloads of other users pass through it
	return dir
}
