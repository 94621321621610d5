// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyhole-agent/keyhole/agent"
	"github.com/keyhole-agent/keyhole/secret"
)

// verifyTime bounds a check by the agent. It takes no longer deadline.
const verifyTime = time.Minute

func (p *program) auditCommand() *cobra.Command {
	return group("audit", "Check the record of every access", p.auditVerifyCommand())
}

// shownReport is the result of a check, as -o json shows it.
type shownReport struct {
	Segments int      `json:"segments"`
	Records  uint64   `json:"records"`
	Problems []string `json:"problems"`
	Omitted  int      `json:"omitted,omitempty"`
}

func (p *program) auditVerifyCommand() *cobra.Command {
	var config string
	var offline bool
	cmd := &cobra.Command{
		Use: "verify", Short: "Find records of the audit log that were changed, removed, reordered or cut",
		Long: `Check every record of the audit log against the one before it, and the end of
the log against the head that is anchored in the store. The running agent does
it, for whoever holds super on sys/audit; with --offline it is done here, for a
store that no agent has open.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if offline {
				return p.verifyOffline(cmd, config)
			}
			return p.connect(cmd.Context(), func(ctx context.Context, c *session) error {
				// Without a deadline, the agent would give up after its shortest.
				ctx, cancel := context.WithTimeout(ctx, verifyTime)
				defer cancel()
				c.expect(verifyTime + p.patience)
				report, err := c.VerifyAudit(ctx)
				if errors.Is(err, context.DeadlineExceeded) {
					return fmt.Errorf("%w; a log this long is checked with --offline, while no agent runs", err)
				}
				if err != nil {
					return err
				}
				return p.printReport(shownReport(report))
			})
		},
	}
	cmd.Flags().BoolVar(&offline, "offline", false, "open the store and the log here")
	cmd.Flags().StringVar(&config, "config", agent.DefaultConfigPath(), "with --offline, the agent's configuration")
	return cmd
}

func (p *program) verifyOffline(cmd *cobra.Command, path string) error {
	config, err := p.readConfig(path, cmd.Flags())
	if err != nil {
		return err
	}
	opener, err := agent.Opener(config, p.askPassword(cmd.Context()))
	if err != nil {
		return err
	}
	report, err := agent.VerifyAudit(cmd.Context(), config, opener)
	if errors.Is(err, secret.ErrInUse) {
		return fmt.Errorf("%w; have it check its log itself: keyhole audit verify", err)
	}
	if err != nil {
		return err
	}
	return p.printReport(shownReport(report))
}

// printReport fails when there are problems, so that scripts notice.
func (p *program) printReport(report shownReport) error {
	if report.Problems == nil {
		report.Problems = []string{}
	}
	err := p.print(report, func(w io.Writer) error {
		for _, problem := range report.Problems {
			if _, err := fmt.Fprintln(w, problem); err != nil {
				return err
			}
		}
		if report.Omitted > 0 {
			if _, err := fmt.Fprintf(w, "and %d more\n", report.Omitted); err != nil {
				return err
			}
		}
		return row(w, fmt.Sprintf("%s in %s, %s", count(report.Records, "record"), count(report.Segments, "segment"),
			count(len(report.Problems)+report.Omitted, "problem")))
	})
	if err == nil && len(report.Problems) > 0 {
		err = fmt.Errorf("the audit log is not what was written: %w", secret.ErrTampered)
	}
	return err
}
