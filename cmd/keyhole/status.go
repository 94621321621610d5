// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyhole-agent/keyhole/secret"
)

// shownStatus is how the agent is, as -o json shows it.
type shownStatus struct {
	Serving     bool             `json:"serving"`
	Note        string           `json:"note,omitempty"` // why there is nothing else
	Version     string           `json:"version,omitempty"`
	PID         int              `json:"pid,omitempty"`
	Started     time.Time        `json:"started,omitzero"`
	SPIFFEID    string           `json:"spiffe_id,omitempty"`
	Development bool             `json:"development,omitempty"`
	Components  []shownComponent `json:"components,omitempty"`
}

type shownComponent struct {
	Name    string `json:"name"`
	Healthy bool   `json:"healthy"`
	Message string `json:"message"`
}

func (p *program) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Tell how the agent is", Args: usageArgs(cobra.NoArgs),
		Long: `Tell whether the agent serves, and, to whoever holds super on sys/status, how
each part of it is.`,
		Example: "  keyhole status --wait 30s",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := cmd.Context(), context.CancelFunc(func() {})
			if p.wait > 0 {
				ctx, cancel = context.WithTimeout(ctx, p.wait)
			}
			defer cancel()
			return p.connect(ctx, p.status)
		},
	}
	cmd.Flags().Var((*duration)(&p.wait), "wait", "wait so long for the agent to serve")
	return cmd
}

func (p *program) status(ctx context.Context, c *session) error {
	check := c.Healthy
	if p.wait > 0 {
		check = c.Wait
	}
	if err := check(ctx); err != nil {
		return err
	}
	status, err := c.Status(ctx)
	switch {
	case errors.Is(err, secret.ErrDenied):
		// That it serves is for everybody. The rest is not, and the admin socket
		// belongs to root.
		return p.printNote("The details take the admin socket, and super on sys/status.")
	case errors.Is(err, secret.ErrUnavailable):
		return p.printNote("There are no details: " + oneLine(err.Error()))
	case err != nil:
		return err
	}
	shown := shownStatus{
		Serving: true, Version: status.Version, PID: status.PID, Started: status.Started,
		SPIFFEID: status.SPIFFEID, Development: status.Development,
	}
	for _, part := range status.Components {
		shown.Components = append(shown.Components, shownComponent(part))
	}
	return p.print(shown, func(w io.Writer) error { return p.statusRows(w, shown) })
}

func (p *program) printNote(note string) error {
	shown := shownStatus{Serving: true, Note: note}
	return p.print(shown, func(w io.Writer) error { return row(w, "The agent serves. "+note) })
}

func (p *program) statusRows(w io.Writer, shown shownStatus) error {
	who := cmp.Or(shown.SPIFFEID, "without an SVID")
	if _, err := fmt.Fprintf(w, "keyhole %s, pid %d, started %s, %s\n", shown.Version, shown.PID, p.when(shown.Started), who); err != nil {
		return err
	}
	for _, part := range shown.Components {
		mark := "ok"
		if !part.Healthy {
			mark = "FAULT"
		}
		if err := row(w, part.Name, mark, oneLine(part.Message)); err != nil {
			return err
		}
	}
	return nil
}
