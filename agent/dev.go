// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/secret"
)

// Development is an agent with a small trust domain of its own, all under one
// folder:
//
//	env              what a shell sources to talk to the agent; there while it is ready
//	agent.sock       admin.sock
//	secrets  fs/     the mount
//	workloads.yaml   rules that give processes other SPIFFE IDs; optional
//	spiffe/          the sockets of the trust domain
//	store/           0700: database, audit log, and the keyfile beside what it opens
//
// Beyond the trust domain, which is a Workload API and a broker like any other,
// the agent is the one that runs in production. What makes it unfit for that is
// the keyfile beside the store, and a trust domain that anybody's processes
// belong to.
type Development struct {
	dir    string
	domain *devdomain.Server
	agent  *Agent

	mu    sync.Mutex
	rules []devdomain.Rule // in force
}

// maxDevelopmentPath bounds the folder's path in bytes: the longest socket under
// it, spiffe/workload.sock, has to fit into sockaddr_un (unix(7)).
const maxDevelopmentPath = 107 - len("/spiffe/workload.sock")

// NewDevelopment starts everything under dir, which is made, 0755, when it is
// missing. The user who starts it is the administrator. What is stored there
// survives.
//
// Errors: secret.ErrInvalid for a folder that others may change, a path that is
// too long, or rules that make no sense; secret.ErrInUse when another runs there;
// those of New.
func NewDevelopment(ctx context.Context, dir string, options Options) (*Development, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if len(dir) > maxDevelopmentPath {
		return nil, fmt.Errorf("%w folder %s: its path has %d bytes, and the sockets in it leave room for %d; choose a shorter one",
			secret.ErrInvalid, dir, len(dir), maxDevelopmentPath)
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	store := filepath.Join(dir, "store")
	if err := prepareDevelopment(dir, store); err != nil {
		return nil, err
	}
	d := &Development{dir: dir}
	if d.rules, err = d.readRules(); err != nil {
		return nil, err
	}
	domain := spiffeid.RequireTrustDomainFromString(devdomain.DefaultTrustDomain)
	d.domain, err = devdomain.New(devdomain.Config{
		Dir: filepath.Join(dir, "spiffe"), TrustDomain: domain,
		Self: spiffeid.RequireFromPath(domain, "/keyhole/agent"), Rules: d.rules, Logger: options.Logger, Now: options.Now,
	})
	if err != nil {
		return nil, err
	}
	if err := d.start(ctx, store, options); err != nil {
		return nil, errors.Join(err, d.domain.Close())
	}
	return d, nil
}

// prepareDevelopment makes the folders. They are the agent's alone, or whoever
// else they belong to could take the place of what it makes there.
func prepareDevelopment(dir, store string) error {
	for _, folder := range []struct {
		path   string
		mode   fs.FileMode
		refuse fs.FileMode
	}{{dir, 0o755, 0o022}, {store, 0o700, 0o077}, {filepath.Join(dir, "spiffe"), 0o755, 0o022}} {
		if err := makeFolder(folder.path, folder.mode); err != nil {
			return err
		}
		if err := checkOwn(folder.path, folder.refuse); err != nil {
			return err
		}
	}
	return nil
}

// checkOwn refuses a folder of another user, and one with any of these bits in
// its mode.
func checkOwn(path string, refuse fs.FileMode) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	owner, known := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode().Perm(); {
	case !info.IsDir():
		return fmt.Errorf("%w folder %s: something else is there", secret.ErrInvalid, path)
	case !known || int64(owner.Uid) != int64(os.Geteuid()):
		return fmt.Errorf("%w folder %s: it belongs to another user; choose one of your own", secret.ErrInvalid, path)
	case mode&refuse != 0:
		return fmt.Errorf("%w folder %s: with mode %04o others can get at what is in it; run: chmod %04o %s",
			secret.ErrInvalid, path, mode, mode&^refuse, path)
	}
	return nil
}

// start starts the agent in a trust domain that is there. Nobody else runs in
// this folder, so an env file is that of an agent that was killed.
func (d *Development) start(ctx context.Context, store string, options Options) error {
	if err := d.removeEnv(); err != nil {
		return err
	}
	config := d.config(store)
	var err error
	if options.Opener, err = devKey(ctx, config.Store, filepath.Join(store, "root.key"), options.Logger); err != nil {
		return err
	}
	d.agent, err = New(ctx, config, options)
	if errors.Is(err, secret.ErrNotFound) {
		err = fmt.Errorf("%w; to begin anew here, remove %s", err, store)
	}
	return err
}

func (d *Development) config(store string) Config {
	config := DefaultConfig()
	config.TrustDomain = d.domain.TrustDomain().Name()
	config.Administrators = []string{fmt.Sprintf("spiffe://%s/uid/%d", config.TrustDomain, os.Geteuid())}
	config.Socket, config.AdminSocket = filepath.Join(d.dir, "agent.sock"), filepath.Join(d.dir, "admin.sock")
	config.Identity.WorkloadAPI, config.Identity.Broker = d.domain.WorkloadAddress(), d.domain.BrokerAddress()
	config.Store.Path = filepath.Join(store, "keyhole.db")
	config.Mount.Path, config.Mount.Link = filepath.Join(d.dir, "fs"), filepath.Join(d.dir, "secrets")
	config.Audit.Path = filepath.Join(store, "audit")
	config.Development = true
	return config
}

// devKey reads the keyfile, or makes it and the store that it opens.
func devKey(ctx context.Context, config StoreConfig, path string, logger *slog.Logger) (seal.Opener, error) {
	key, err := seal.ReadKeyfile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := InitKeyfile(ctx, config, path); err != nil {
		return nil, err
	}
	logger.Info("made a new store", "path", config.Path)
	return seal.ReadKeyfile(path)
}

// Run serves until ctx ends. As soon as workloads can be identified, it writes
// the env file and calls ready with its path. It is called once.
func (d *Development) Run(ctx context.Context, ready func(env string)) error {
	var failed error
	if d.agent.Identifies(ctx) {
		if failed = d.writeEnv(); failed == nil {
			ready(d.env())
		}
	}
	if failed == nil {
		failed = d.agent.wait(ctx)
	}
	return errors.Join(failed, d.removeEnv(), d.agent.close(ctx), d.domain.Close())
}

// Reload reads the rules of the trust domain again, and does what Agent.Reload
// does. On any error everything stays as it was.
func (d *Development) Reload(ctx context.Context) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	rules, err := d.readRules()
	if err != nil {
		return nil, err
	}
	if err := d.domain.SetRules(rules); err != nil {
		return nil, err
	}
	changes, err := d.agent.Reload(ctx, d.agent.running())
	if err != nil {
		return nil, errors.Join(err, d.domain.SetRules(d.rules))
	}
	if !reflect.DeepEqual(rules, d.rules) {
		changes = append(changes, fmt.Sprintf("workloads.yaml now has %d rules, had %d", len(rules), len(d.rules)))
	}
	d.rules = rules
	return changes, nil
}

func (d *Development) readRules() ([]devdomain.Rule, error) {
	rules, err := devdomain.LoadRules(filepath.Join(d.dir, "workloads.yaml"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return rules, err
}

func (d *Development) env() string { return filepath.Join(d.dir, "env") }

func (d *Development) removeEnv() error {
	if err := os.Remove(d.env()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeEnv writes the file at once, so that a shell never sources half of it.
func (d *Development) writeEnv() (err error) {
	config := d.agent.running()
	var b strings.Builder
	for _, v := range [][2]string{
		{"KEYHOLE_SOCKET", config.Socket}, {"KEYHOLE_ADMIN_SOCKET", config.AdminSocket},
		{"SPIFFE_ENDPOINT_SOCKET", d.domain.WorkloadAddress()},
	} {
		fmt.Fprintf(&b, "export %s='%s'\n", v[0], strings.ReplaceAll(v[1], "'", `'\''`))
	}
	draft, err := os.CreateTemp(d.dir, ".env.*")
	if err != nil {
		return err
	}
	_, err = draft.WriteString(b.String())
	// Every user's shell may source it, whatever the umask.
	err = errors.Join(err, draft.Chmod(0o644), draft.Close())
	if err == nil {
		err = os.Rename(draft.Name(), d.env())
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("writing %s: %w", d.env(), err), os.Remove(draft.Name()))
	}
	return err
}
