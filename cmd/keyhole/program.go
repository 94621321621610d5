// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// program is one run of the command line: what it reads, writes and was told.
type program struct {
	in       *os.File
	out, err *os.File
	environ  []string
	version  string
	now      func() time.Time
	patience time.Duration // how long the agent may be silent before a command gives up

	wait   time.Duration // how long the agent may take to appear
	debug  bool
	output string // table, json or yaml
}

// run executes the command that args name, and returns its exit code.
func (p *program) run(ctx context.Context, args []string) int {
	root := p.root()
	root.SetArgs(args)
	root.SetIn(p.in)
	root.SetOut(p.out)
	root.SetErr(p.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	code := exitCode(err)
	text := oneLine(err.Error())
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		code, text = exitFailed, "interrupted ("+text+")"
	}
	fmt.Fprintf(p.err, "keyhole: %s\n", text)
	if p.debug {
		explainError(p.err, err)
	}
	return code
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "keyhole",
		Short: "Secrets for the workloads of this node, by SPIFFE identity",
		Long: `Keyhole is a per-node secrets agent. A workload proves who it is with SPIFFE
and sees only its own secrets: as files, or over a Unix socket.`,
		Version:       p.version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		// Before anything is done.
		PersistentPreRunE: func(*cobra.Command, []string) error { return p.checkOutput() },
	}
	root.PersistentFlags().BoolVar(&p.debug, "debug", false, "say all that is known about an error")
	root.PersistentFlags().StringVarP(&p.output, "output", "o", "table", "the form of answers: table, json or yaml")
	root.SetFlagErrorFunc(flagError)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		p.devCommand(), p.initCommand(), p.agentCommand(), p.statusCommand(),
		p.secretCommand(), p.policyCommand(), p.auditCommand(), p.versionCommand(),
	)
	return root
}

func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return p.print(map[string]string{"version": p.version}, func(w io.Writer) error { return row(w, p.version) })
		},
	}
}

// getenv returns an environment variable; "" when it is not set.
func (p *program) getenv(name string) string {
	for _, entry := range slices.Backward(p.environ) {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

// group makes a command that only has others below it.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(commands...)
	return cmd
}
