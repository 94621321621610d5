// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// policyAdvice is for who names what is not there.
const policyAdvice = "keyhole policy list shows what there is"

func (p *program) policyCommand() *cobra.Command {
	return group("policy", "Say who may do what",
		p.policyApplyCommand(), p.policyListCommand(), p.policyGetCommand(), p.policyDeleteCommand(), p.policyExplainCommand())
}

func (p *program) policyApplyCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Create policies, or replace those of the same name; all or none",
		Example: "  keyhole policy apply -f policies.yaml", Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("which policies? name a file with -f, or - for standard input")
			}
			document, err := p.readFile(cmd.Context(), file)
			if err != nil {
				return err
			}
			policies, err := policy.ParseFile(document)
			if err != nil {
				return usageError{fmt.Errorf("%s: %w", file, err)}
			}
			return p.connect(cmd.Context(), func(ctx context.Context, c *session) error {
				if err := c.ApplyPolicies(ctx, policies); err != nil {
					return err
				}
				names := []string{}
				for _, applied := range policies {
					names = append(names, applied.Name)
				}
				return p.print(map[string]any{"applied": names}, func(w io.Writer) error { return policyDone(w, "applied", names) })
			})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "a YAML file; - for standard input")
	return cmd
}

// maxPolicyFile bounds a file of policies, in bytes, as the agent bounds a
// request.
const maxPolicyFile = 16 << 20

func (p *program) readFile(ctx context.Context, name string) ([]byte, error) {
	var from io.Reader
	if name == "-" {
		from = p.stdin(ctx, "the policies")
	} else {
		file, err := os.Open(filepath.Clean(name))
		if err != nil {
			return nil, usageError{err}
		}
		defer file.Close() // it was only read
		from = input{ctx, file}
	}
	document, err := io.ReadAll(io.LimitReader(from, maxPolicyFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the policies: %w", err)
	}
	if len(document) > maxPolicyFile {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", secret.ErrTooLarge, name, maxPolicyFile)
	}
	return document, nil
}

func policyDone(w io.Writer, what string, names []string) error {
	for _, name := range names {
		if _, err := fmt.Fprintln(w, what, name); err != nil {
			return err
		}
	}
	return nil
}

// shownPolicy is a policy as it is written in a file.
type shownPolicy struct {
	Name        string   `json:"name"`
	SPIFFEID    string   `json:"spiffe_id"`
	Path        string   `json:"path"`
	Permissions []string `json:"permissions"`
}

func showPolicy(from policy.Policy) shownPolicy {
	shown := shownPolicy{Name: from.Name, SPIFFEID: from.SPIFFEID, Path: from.Path}
	for _, permission := range from.Permissions {
		shown.Permissions = append(shown.Permissions, permission.String())
	}
	return shown
}

func (p *program) policyListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all policies", Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withPolicies(cmd, func(policies []shownPolicy) error {
				return p.print(map[string]any{"policies": policies}, func(w io.Writer) error { return policyRows(w, policies) })
			})
		},
	}
}

func (p *program) policyGetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get NAME", Short: "Show one policy", Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withPolicies(cmd, func(policies []shownPolicy) error {
				for _, found := range policies {
					if found.Name == args[0] {
						one := []shownPolicy{found}
						return p.print(map[string]any{"policies": one}, func(w io.Writer) error { return policyRows(w, one) })
					}
				}
				return fmt.Errorf("policy %q: %w; %s", args[0], secret.ErrNotFound, policyAdvice)
			})
		},
	}
}

func (p *program) withPolicies(cmd *cobra.Command, do func([]shownPolicy) error) error {
	return p.connect(cmd.Context(), func(ctx context.Context, c *session) error {
		policies, err := c.Policies(ctx)
		if err != nil {
			return err
		}
		shown := []shownPolicy{}
		for _, one := range policies {
			shown = append(shown, showPolicy(one))
		}
		return do(shown)
	})
}

func policyRows(w io.Writer, policies []shownPolicy) error {
	if err := row(w, "NAME", "SPIFFE ID", "PATH", "PERMISSIONS"); err != nil {
		return err
	}
	for _, one := range policies {
		if err := row(w, one.Name, one.SPIFFEID, one.Path, strings.Join(one.Permissions, ", ")); err != nil {
			return err
		}
	}
	return nil
}

func (p *program) policyDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Short: "Delete a policy", Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.connect(cmd.Context(), func(ctx context.Context, c *session) error {
				if err := c.DeletePolicy(ctx, args[0]); err != nil {
					return advised(err, secret.ErrNotFound, policyAdvice)
				}
				return p.print(map[string]any{"deleted": args}, func(w io.Writer) error { return policyDone(w, "deleted", args) })
			})
		},
	}
}

// shownExplanation is an explanation, as -o json shows it.
type shownExplanation struct {
	SPIFFEID   string            `json:"spiffe_id"`
	Permission string            `json:"permission"`
	Path       string            `json:"path"`
	Allowed    bool              `json:"allowed"`
	Policy     string            `json:"policy,omitempty"`
	Considered []shownConsidered `json:"considered,omitempty"`
	Omitted    int               `json:"omitted,omitempty"`
}

type shownConsidered struct {
	Policy string `json:"policy,omitempty"`
	Reason string `json:"reason"`
}

func (p *program) policyExplainCommand() *cobra.Command {
	return &cobra.Command{
		Use: "explain SPIFFE-ID PERMISSION PATH", Short: "Tell which policy decides, or why none does",
		Example: "  keyhole policy explain spiffe://example.org/app read db/creds",
		Args:    usageArgs(cobra.ExactArgs(3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := spiffeid.FromString(args[0])
			if err != nil {
				return usageError{fmt.Errorf("SPIFFE ID %q: %w", args[0], err)}
			}
			want, err := policy.ParsePermission(args[1])
			if err != nil {
				return usageError{err}
			}
			path, err := parsePath(args[2])
			if err != nil {
				return err
			}
			return p.connect(cmd.Context(), func(ctx context.Context, c *session) error {
				explanation, err := c.ExplainAs(ctx, id, want, path)
				if err != nil {
					return err
				}
				return p.printExplanation(explanation)
			})
		},
	}
}

func (p *program) printExplanation(e policy.Explanation) error {
	shown := shownExplanation{
		SPIFFEID: e.SPIFFEID.String(), Permission: e.Permission.String(), Path: e.Path.String(),
		Allowed: e.Decision.Allowed, Policy: e.Decision.Policy, Omitted: e.Omitted,
	}
	for _, c := range e.Considered {
		shown.Considered = append(shown.Considered, shownConsidered{c.Policy, c.Reason})
	}
	return p.print(shown, func(w io.Writer) error {
		verdict := "may not " + shown.Permission + " " + shown.Path + ": no policy allows it"
		if shown.Allowed {
			verdict = "may " + shown.Permission + " " + shown.Path + ": " + shown.Policy + " allows it"
		}
		if _, err := fmt.Fprintf(w, "%s %s\n", shown.SPIFFEID, verdict); err != nil {
			return err
		}
		for _, c := range shown.Considered {
			if err := row(w, "  "+c.Policy, c.Reason); err != nil {
				return err
			}
		}
		if shown.Omitted > 0 {
			_, err := fmt.Fprintf(w, "  and %d more\n", shown.Omitted)
			return err
		}
		return nil
	})
}
