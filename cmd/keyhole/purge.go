// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyhole-agent/keyhole/secret"
)

func (p *program) purgeCommand() *cobra.Command {
	var which secret.Purge
	var olderThan duration
	var force bool
	cmd := &cobra.Command{
		Use: "purge [PATH]", Short: "Destroy empty secrets for good",
		Long: `Destroy the secrets that have no live version, below a path or all: their
keys, their history and their names. Nothing brings them back. It takes super
on sys/purge.`,
		Example: "  keyhole secret purge --dry-run\n  keyhole secret purge --force --older-than 30d",
		Args:    usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				var err error
				if which.Prefix, err = parsePath(args[0]); err != nil {
					return err
				}
			}
			if which.DryRun && force {
				return usagef("--dry-run and --force exclude each other")
			}
			if !which.DryRun && !force && !p.interactive() {
				return usagef("a purge destroys for good, and there is no terminal to ask on; repeat with --force, or look first with --dry-run")
			}
			which.OlderThan = time.Duration(olderThan)
			return p.connect(cmd.Context(), func(ctx context.Context, c *session) error {
				if which.DryRun {
					return p.dryPurge(ctx, c, which)
				}
				if !force {
					if sure, err := p.confirmPurge(cmd.Context(), ctx, c, which); err != nil || !sure {
						return err
					}
				}
				return p.purge(ctx, c, which)
			})
		},
	}
	cmd.Flags().BoolVar(&which.DryRun, "dry-run", false, "list what would be purged, and purge nothing")
	cmd.Flags().BoolVar(&force, "force", false, "do not ask")
	cmd.Flags().Var(&olderThan, "older-than", "only what has been empty for so long, as in 30d, 12h or 2w")
	return cmd
}

// shownPurge is the result of a purge, as -o json shows it.
type shownPurge struct {
	DryRun bool     `json:"dry_run,omitempty"`
	Purged int      `json:"purged"`
	Paths  []string `json:"paths"`
}

func (p *program) dryPurge(ctx context.Context, c *session, which secret.Purge) error {
	shown := shownPurge{DryRun: true, Paths: []string{}}
	for step, err := range c.Purge(ctx, which) {
		if err != nil {
			return err
		}
		c.heard()
		for _, path := range step.Paths {
			shown.Paths = append(shown.Paths, path.String())
		}
	}
	return p.print(shown, func(w io.Writer) error {
		for _, path := range shown.Paths {
			if _, err := fmt.Fprintln(w, "Would purge:", path); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintf(w, "Dry run: %s would be purged\n", count(len(shown.Paths), "secret"))
		return err
	})
}

func (p *program) purge(ctx context.Context, c *session, which secret.Purge) error {
	shown := shownPurge{Paths: []string{}}
	for step, err := range c.Purge(ctx, which) {
		if err != nil && shown.Purged > 0 {
			return fmt.Errorf("%w; %s purged before that", err, count(shown.Purged, "secret"))
		}
		if err != nil {
			return err
		}
		c.heard()
		shown.Purged += len(step.Paths)
		for _, path := range step.Paths {
			shown.Paths = append(shown.Paths, path.String())
		}
		if step.Found > 0 && len(step.Paths) > 0 && shown.Purged < step.Found {
			fmt.Fprintf(p.err, "purged %d of %d\n", shown.Purged, step.Found)
		}
	}
	return p.printPurged(shown, "Purged "+count(shown.Purged, "secret"))
}

func (p *program) printPurged(shown shownPurge, sentence string) error {
	return p.print(shown, func(w io.Writer) error { return row(w, sentence) })
}

// confirmPurge asks a person, who may take longer than the agent.
func (p *program) confirmPurge(ctx, calling context.Context, c *session, which secret.Purge) (bool, error) {
	found := 0
	dry := which
	dry.DryRun = true
	for step, err := range c.Purge(calling, dry) {
		if err != nil {
			return false, err
		}
		c.heard()
		found = max(found, step.Found)
	}
	none := shownPurge{Paths: []string{}}
	if found == 0 {
		return false, p.printPurged(none, "Found no empty secrets")
	}
	c.watch.Stop()
	defer c.heard()
	sure, err := p.confirm(ctx, fmt.Sprintf("Found %s. Purge them?", count(found, "empty secret")))
	if err != nil || sure {
		return sure, err
	}
	return false, p.printPurged(none, "Purged nothing")
}
