// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/keyhole-agent/keyhole/secret"
)

// notThere adds to an error where to look for what there is.
func notThere(err error, path secret.Path, versioned bool) error {
	if versioned {
		return advised(err, secret.ErrNotFound, "keyhole secret metadata "+path.String()+" shows its versions")
	}
	return advised(err, secret.ErrNotFound, "keyhole secret list shows what you may list")
}

func (p *program) secretCommand() *cobra.Command {
	return group("secret", "Read and write secrets",
		p.putCommand(), p.getCommand(), p.listCommand(), p.metadataCommand(), p.deleteCommand(), p.purgeCommand())
}

func (p *program) putCommand() *cobra.Command {
	return &cobra.Command{
		Use: "put PATH KEY=VALUE...", Short: "Write the next version of a secret",
		Long: `Write the next version of a secret, as a whole: keys that are not given are not
in it. A value is given as key=text, as key=@FILE, as key=@- for standard
input, or as key alone, which asks for it on the terminal.`,
		Example: "  keyhole secret put db/creds username=app password=@-",
		Args:    usageArgs(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := parsePath(args[0])
			if err != nil {
				return err
			}
			if err := path.CheckStorable(); err != nil {
				return usageError{err}
			}
			values, err := p.readAssignments(cmd.Context(), args[1:])
			if err != nil {
				return err
			}
			defer values.Wipe()
			return p.connect(cmd.Context(), func(ctx context.Context, c *session) error {
				info, err := c.Put(ctx, path, values)
				if err != nil {
					return err
				}
				return p.print(describe(info), func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "%s is now at version %d\n", path, info.Current)
					return err
				})
			})
		},
	}
}

// shownSecret is a secret with its values, as -o json shows it.
type shownSecret struct {
	Path    string            `json:"path"`
	Version secret.Version    `json:"version"`
	Created time.Time         `json:"created"`
	Values  map[string]string `json:"values"`
	Base64  []string          `json:"base64,omitempty"` // keys whose value is no text, and encoded
}

func (p *program) getCommand() *cobra.Command {
	var version uint64
	cmd := &cobra.Command{
		Use: "get PATH [KEY]", Short: "Read a secret, or the bytes of one of its values",
		Long: `Read a secret. With a key, the bytes of that value are written and nothing
else, no newline either.`,
		Example: "  keyhole secret get db/creds\n  keyhole secret get db/creds password",
		Args:    usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := parsePath(args[0])
			if err != nil {
				return err
			}
			var key secret.Key
			if len(args) == 2 {
				if key, err = secret.ParseKey(args[1]); err != nil {
					return usageError{err}
				}
			}
			return p.connect(cmd.Context(), func(ctx context.Context, c *session) error {
				got, err := c.Get(ctx, path, secret.Version(version))
				if err != nil {
					return notThere(err, path, version != 0)
				}
				defer got.Values.Wipe()
				if len(args) == 2 {
					return p.writeValue(got, key)
				}
				return p.printSecret(got)
			})
		},
	}
	cmd.Flags().Uint64Var(&version, "version", 0, "an earlier version (default: the current one)")
	return cmd
}

// writeValue writes the bytes of one value, whatever -o says.
func (p *program) writeValue(got secret.Secret, key secret.Key) error {
	value, ok := got.Values.Get(key)
	if !ok {
		var names []string
		for key := range got.Values.All() {
			names = append(names, key.String())
		}
		return fmt.Errorf("%s has no key %s: %w; it has %s", got.Info.Path, key, secret.ErrNotFound, strings.Join(names, ", "))
	}
	_, err := p.out.Write(value)
	return err
}

func (p *program) printSecret(got secret.Secret) error {
	shown := shownSecret{
		Path: got.Info.Path.String(), Version: got.Version.Version, Created: got.Version.Created,
		Values: map[string]string{},
	}
	for key, value := range got.Values.All() {
		if utf8.Valid(value) {
			shown.Values[key.String()] = string(value)
			continue
		}
		shown.Values[key.String()] = base64.StdEncoding.EncodeToString(value)
		shown.Base64 = append(shown.Base64, key.String())
	}
	return p.print(shown, func(w io.Writer) error {
		for key := range got.Values.All() {
			text, form := shownText(shown.Values[key.String()]), ""
			if slices.Contains(shown.Base64, key.String()) {
				form = "(base64)"
			}
			if err := row(w, key, text, form); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *program) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list [FOLDER]", Short: "List the secrets that you may list", Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var prefix secret.Path
			if len(args) == 1 {
				var err error
				if prefix, err = parsePath(args[0]); err != nil {
					return err
				}
			}
			return p.connect(cmd.Context(), func(ctx context.Context, c *session) error {
				type shownEntry struct {
					Path  string `json:"path"`
					Empty bool   `json:"empty,omitempty"`
				}
				entries := []shownEntry{}
				for entry, err := range c.List(ctx, prefix, true) {
					if err != nil {
						return err
					}
					c.heard()
					entries = append(entries, shownEntry{entry.Path.String(), entry.Empty})
				}
				return p.print(entries, func(w io.Writer) error {
					for _, e := range entries {
						note := ""
						if e.Empty {
							note = "(empty)"
						}
						if err := row(w, e.Path, note); err != nil {
							return err
						}
					}
					return nil
				})
			})
		},
	}
}

func (p *program) metadataCommand() *cobra.Command {
	return &cobra.Command{
		Use: "metadata PATH", Short: "Describe a secret, without its values", Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := parsePath(args[0])
			if err != nil {
				return err
			}
			return p.connect(cmd.Context(), func(ctx context.Context, c *session) error {
				info, err := c.Describe(ctx, path)
				if err != nil {
					return notThere(err, path, false)
				}
				return p.printInfo(info)
			})
		},
	}
}

func (p *program) deleteCommand() *cobra.Command {
	var versions []uint
	var all bool
	cmd := &cobra.Command{
		Use: "delete PATH", Short: "Stop serving a version of a secret; it stays in the store",
		Long: `Stop serving the current version of a secret, or others. The highest version
that is still live becomes the current one. A secret with none is empty: it
keeps its path until it is written again or purged.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := parsePath(args[0])
			if err != nil {
				return err
			}
			if all && len(versions) > 0 {
				return usagef("--versions and --all-versions exclude each other")
			}
			which := secret.Selection{All: all}
			for _, v := range versions {
				which.Versions = append(which.Versions, secret.Version(v))
			}
			return p.connect(cmd.Context(), func(ctx context.Context, c *session) error {
				info, err := c.Delete(ctx, path, which)
				if err != nil {
					return notThere(err, path, len(versions) > 0)
				}
				return p.print(describe(info), func(w io.Writer) error {
					if info.Current == 0 {
						_, err := fmt.Fprintf(w, "%s has no live version any more\n", path)
						return err
					}
					_, err := fmt.Fprintf(w, "%s is now at version %d\n", path, info.Current)
					return err
				})
			})
		},
	}
	cmd.Flags().UintSliceVar(&versions, "versions", nil, "these versions, as in 1,2")
	cmd.Flags().BoolVar(&all, "all-versions", false, "all versions")
	return cmd
}

// shownInfo is a secret's description, as -o json shows it.
type shownInfo struct {
	Path     string         `json:"path"`
	ID       string         `json:"id"`
	Created  time.Time      `json:"created,omitzero"`
	Updated  time.Time      `json:"updated,omitzero"`
	Current  secret.Version `json:"current"`
	Oldest   secret.Version `json:"oldest,omitzero"`
	Latest   secret.Version `json:"latest"`
	EmptyAt  time.Time      `json:"empty_at,omitzero"`
	Keys     []shownKey     `json:"keys,omitempty"`
	Versions []shownVersion `json:"versions,omitempty"`
}

type shownKey struct {
	Key  string `json:"key"`
	Size int    `json:"size"`
}

type shownVersion struct {
	Version   secret.Version `json:"version"`
	State     string         `json:"state"`
	Created   time.Time      `json:"created"`
	DeletedAt time.Time      `json:"deleted_at,omitzero"`
	Size      int            `json:"size"`
	Writer    string         `json:"writer"`
}

func describe(info secret.Info) shownInfo {
	shown := shownInfo{
		Path: info.Path.String(), ID: info.ID.String(), Created: info.Created, Updated: info.Updated,
		Current: info.Current, Oldest: info.Oldest, Latest: info.Latest, EmptyAt: info.EmptyAt,
	}
	for _, k := range info.Keys {
		shown.Keys = append(shown.Keys, shownKey{k.Key.String(), k.Size})
	}
	for _, v := range info.Versions {
		shown.Versions = append(shown.Versions, shownVersion{v.Version, v.State.String(), v.Created, v.DeletedAt, v.Size, v.Writer})
	}
	return shown
}

func (p *program) printInfo(info secret.Info) error {
	return p.print(describe(info), func(w io.Writer) error {
		rows := [][]any{{"path", info.Path}, {"created", p.when(info.Created)}, {"updated", p.when(info.Updated)}, {"current", info.Current}}
		if !info.EmptyAt.IsZero() {
			rows = append(rows, []any{"empty since", p.when(info.EmptyAt)})
		}
		for _, k := range info.Keys {
			rows = append(rows, []any{"key", fmt.Sprintf("%s, %s", k.Key, count(k.Size, "byte"))})
		}
		for _, v := range info.Versions {
			rows = append(rows, []any{fmt.Sprintf("version %d", v.Version),
				fmt.Sprintf("%s, %s, written %s by %s", v.State, count(v.Size, "byte"), p.when(v.Created), v.Writer)})
		}
		for _, cells := range rows {
			if err := row(w, cells...); err != nil {
				return err
			}
		}
		return nil
	})
}
