// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/keyhole-agent/keyhole/agent"
)

func (p *program) devCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "dev", Short: "Run everything on one machine, for development", Args: usageArgs(cobra.NoArgs),
		Long: `Run an agent with a small trust domain of its own, all under one folder:
store, sockets, Workload API and mount. What a shell needs to talk to it is
in the file env there, as soon as the agent is ready. The data survives.`,
		Example: "  keyhole dev --dir /tmp/keyhole\n  . /tmp/keyhole/env && keyhole status --wait 30s",
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.dev(cmd.Context(), dir) },
	}
	cmd.Flags().StringVar(&dir, "dir", "./keyhole-dev", "the folder for everything")
	return cmd
}

func (p *program) dev(ctx context.Context, dir string) error {
	if err := agent.Harden(); err != nil {
		return err
	}
	hangup := catchSignals()
	defer signal.Stop(hangup)
	logger, level := agent.NewLogger(agent.DefaultConfig().Log, p.err, term.IsTerminal(int(p.err.Fd())))
	d, err := agent.NewDevelopment(ctx, dir, agent.Options{Version: p.version, Logger: logger, Level: level})
	if err != nil {
		return stoppedEarly(ctx, err)
	}
	defer onHangup(ctx, hangup, logger, d.Reload)()
	return d.Run(ctx, func(env string) { logger.Info("ready", "env", env) })
}

// stoppedEarly is no error when somebody wanted the agent to end while it was
// starting.
func stoppedEarly(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// readyPatience bounds how long the agent puts off saying that it is ready.
const readyPatience = 5 * time.Second

func (p *program) agentCommand() *cobra.Command {
	var path string
	var checkOnly bool
	cmd := &cobra.Command{
		Use: "agent", Short: "Run the agent", Args: usageArgs(cobra.NoArgs),
		Long: `Run the agent in the foreground until it gets SIGTERM. SIGHUP reads the
configuration and the policies again.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if checkOnly {
				config, err := p.readConfig(path, cmd.Flags())
				if err != nil {
					return err
				}
				return agent.WriteConfig(p.out, config)
			}
			return p.agent(cmd.Context(), path, cmd.Flags())
		},
	}
	cmd.Flags().StringVar(&path, "config", agent.DefaultConfigPath(), "the configuration file")
	cmd.Flags().BoolVar(&checkOnly, "check-config", false, "print the effective configuration and exit")
	agent.AddFlags(cmd.Flags())
	return cmd
}

func (p *program) agent(ctx context.Context, path string, flags *pflag.FlagSet) error {
	if err := agent.Harden(); err != nil {
		return err
	}
	hangup := catchSignals()
	defer signal.Stop(hangup)
	config, err := p.readConfig(path, flags)
	if err != nil {
		return err
	}
	logger, level := agent.NewLogger(config.Log, p.err, term.IsTerminal(int(p.err.Fd())))
	opener, err := agent.Opener(config, p.askPassword(ctx))
	if err != nil {
		return stoppedEarly(ctx, err)
	}
	a, err := agent.New(ctx, config, agent.Options{Opener: opener, Version: p.version, Logger: logger, Level: level})
	if err != nil {
		return stoppedEarly(ctx, err)
	}
	defer onHangup(ctx, hangup, logger, func(ctx context.Context) ([]string, error) {
		config, err := p.readConfig(path, flags)
		if err != nil {
			return nil, err
		}
		return a.Reload(ctx, config)
	})()
	// Who starts after the agent may count on being identified, unless that takes
	// longer than a start should.
	identifies, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	if !a.Identifies(identifies) {
		logger.Warn("workloads cannot be identified yet; keyhole status says what is missing")
	}
	// Not running under systemd is no error.
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		logger.Warn("systemd was not told that the agent is ready", "error", err)
	}
	logger.Info("ready", "socket", config.Socket, "admin_socket", config.AdminSocket)
	return a.Run(ctx)
}

// catchSignals keeps SIGHUP from ending the process, from now on, and a log that
// nobody reads any more: the mount would be left behind.
func catchSignals() (hangup chan os.Signal) {
	signal.Ignore(syscall.SIGPIPE)
	hangup = make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	return hangup
}

// onHangup calls reload on each SIGHUP until it is stopped, which waits.
func onHangup(ctx context.Context, hangup <-chan os.Signal, logger *slog.Logger, reload func(context.Context) ([]string, error)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var listening sync.WaitGroup
	listening.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
			}
			changes, err := reload(ctx)
			if err != nil {
				logger.Error("nothing was changed", "error", err)
				continue
			}
			logger.Info("read the configuration and the policies again", "changes", strings.Join(changes, "; "))
		}
	})
	return func() {
		cancel()
		listening.Wait()
	}
}

// askPassword returns what asks a person for the store's password, or nil when
// there is none to ask.
func (p *program) askPassword(ctx context.Context) func() ([]byte, error) {
	if !p.interactive() {
		return nil
	}
	return func() ([]byte, error) { return p.readHidden(ctx, "Password of the store: ") }
}
