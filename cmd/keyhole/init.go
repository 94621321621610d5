// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/keyhole-agent/keyhole/agent"
	"github.com/keyhole-agent/keyhole/secret"
)

func (p *program) initCommand() *cobra.Command {
	var i initialization
	i.config = agent.DefaultConfig()
	cmd := &cobra.Command{
		Use: "init", Short: "Write a configuration, and make the store and its root key", Args: usageArgs(cobra.NoArgs),
		Example: "  keyhole init --trust-domain example.org --administrator spiffe://example.org/admin \\\n" +
			"    --workload-api unix:///run/spire/agent.sock --broker unix:///run/spire/broker.sock",
		RunE: func(cmd *cobra.Command, _ []string) error { return p.init(cmd.Context(), i) },
	}
	flags := cmd.Flags()
	flags.StringVar(&i.path, "config", agent.DefaultConfigPath(), "where to write the configuration")
	flags.StringVar(&i.unlock, "unlock", "keyfile", "what opens the root key: keyfile or password")
	flags.StringVar(&i.config.Unlock.Keyfile, "keyfile", "", "where to make the keyfile (default: root.key beside the configuration)")
	flags.StringVar(&i.config.Unlock.PasswordFile, "password-file", "", "a file with the password (default: ask on the terminal)")
	flags.StringVar(&i.config.TrustDomain, "trust-domain", "", "the SPIFFE trust domain; required")
	flags.StringArrayVar(&i.config.Administrators, "administrator", nil, "SPIFFE ID of an administrator; may be repeated; required")
	flags.StringVar(&i.config.Identity.WorkloadAPI, "workload-api", "", "address of the SPIFFE Workload API")
	flags.StringVar(&i.config.Identity.Broker, "broker", "", "address of the SPIFFE Broker API")
	flags.StringVar(&i.config.Store.Path, "store", i.config.Store.Path, "the database file")
	flags.StringVar(&i.config.Audit.Path, "audit", i.config.Audit.Path, "the folder of the audit log")
	return cmd
}

// initialization is what keyhole init was told.
type initialization struct {
	path   string
	unlock string
	config agent.Config
}

func (p *program) init(ctx context.Context, i initialization) error {
	if err := i.complete(); err != nil {
		return usageError{err}
	}
	password, err := p.newPassword(ctx, i)
	if err != nil {
		return err
	}
	defer clear(password)
	if err := os.MkdirAll(filepath.Dir(i.path), 0o700); err != nil {
		return err
	}
	if err := writeNew(i.path, i.config); err != nil {
		return err
	}
	opens := "the password"
	if i.unlock == "keyfile" {
		opens = i.config.Unlock.Keyfile
		err = agent.InitKeyfile(ctx, i.config.Store, opens)
	} else {
		err = agent.InitPassword(ctx, i.config.Store, password)
	}
	if err != nil {
		return errors.Join(err, os.Remove(i.path))
	}
	made := map[string]string{"config": i.path, "store": i.config.Store.Path, "unlock": opens}
	return p.print(made, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Wrote %s and made the store %s.\n"+
			"The root key is opened by %s. Keep a copy elsewhere: without it nothing in the store can be read.\n"+
			"Start the agent with: keyhole agent --config %s\n", i.path, i.config.Store.Path, opens, i.path)
		return err
	})
}

// complete fills in what was not said, and refuses what makes no sense.
func (i *initialization) complete() error {
	if len(i.config.Administrators) == 0 {
		return errors.New("nobody would be able to administer the agent: name one with --administrator SPIFFE-ID")
	}
	unlock := &i.config.Unlock
	switch {
	case i.unlock != "keyfile" && i.unlock != "password":
		return fmt.Errorf("--unlock %q is neither keyfile nor password", i.unlock)
	case i.unlock == "password" && unlock.Keyfile != "":
		return errors.New("--keyfile is for --unlock keyfile")
	case i.unlock == "keyfile" && unlock.PasswordFile != "":
		return errors.New("--password-file is for --unlock password")
	}
	// The agent may be started in another folder.
	for _, path := range []*string{&i.path, &unlock.Keyfile, &unlock.PasswordFile, &i.config.Store.Path, &i.config.Audit.Path} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = absolute
	}
	if i.unlock == "keyfile" {
		unlock.Keyfile = cmp.Or(unlock.Keyfile, filepath.Join(filepath.Dir(i.path), "root.key"))
	}
	return i.config.Check()
}

// newPassword returns the password that is to open the store; nil when none is.
func (p *program) newPassword(ctx context.Context, i initialization) ([]byte, error) {
	switch {
	case i.unlock != "password":
		return nil, nil
	case i.config.Unlock.PasswordFile != "":
		return agent.ReadPasswordFile(i.config.Unlock.PasswordFile)
	case !p.interactive():
		return nil, usagef("there is no terminal to ask for the password; use --password-file")
	}
	first, err := p.readHidden(ctx, "New password of the store: ")
	if err != nil {
		return nil, err
	}
	second, err := p.readHidden(ctx, "Again: ")
	defer clear(second)
	if err == nil && !bytes.Equal(first, second) {
		err = usagef("the two passwords differ; nothing was made")
	}
	if err == nil && len(first) == 0 {
		err = usagef("the password is empty; nothing was made")
	}
	if err != nil {
		clear(first)
		return nil, err
	}
	return first, nil
}

// writeNew writes the configuration to a file that must not be there. After an
// error it is not.
func writeNew(path string, config agent.Config) (err error) {
	file, err := os.OpenFile(filepath.Clean(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: there is a configuration already, %s; choose another with --config", secret.ErrExists, path)
	}
	if err != nil {
		return err
	}
	err = errors.Join(agent.WriteConfig(file, config), file.Sync(), file.Close())
	if err != nil {
		err = errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(path))
	}
	return err
}
