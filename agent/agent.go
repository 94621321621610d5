// SPDX-License-Identifier: Apache-2.0

// Package agent puts the agent together: it is the only package that knows every
// other.
//
// New opens everything in the order in which it is needed, so that what fails
// fails before anybody is served: store, keys, audit log, vault, identity,
// mount, sockets. Run serves until its context ends, and then closes in the
// opposite order: no new requests, the ones in flight (for a bounded time), the
// mount, the changes that were submitted, the log, the keys, the store.
//
// Three things may be absent without keeping the agent from starting, because
// they may come later or matter only to some: the Workload API, the broker, and
// the permission to mount. Status says what is missing, and who needs it is
// answered that it is unavailable. A store, socket or mount that belongs to
// another agent does keep it from starting: the error names that one's pid.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/agent/audit"
	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/agent/vault"
	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/fuse"
	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/identity/broker"
	"github.com/keyhole-agent/keyhole/identity/process"
	"github.com/keyhole-agent/keyhole/identity/workload"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket"
)

// identityTTL is how long an answer of the broker is used without asking again:
// how long a workload may go on after its entry was removed. It is below the
// grace of process.Config, so that an outage of the broker is bridged.
const identityTTL = 10 * time.Second

// drainTime bounds how long the sockets, and then the mount, may take to finish
// what is in flight when the agent stops. Both together are below systemd's
// TimeoutStopSec in keyhole.service.
const drainTime = 8 * time.Second

// Options are what an agent needs beside its configuration.
type Options struct {
	Opener  seal.Opener      // opens the root key; New clears it; nil for a store that forgets
	Version string           // of the binary
	Logger  *slog.Logger     // nil discards
	Level   *slog.LevelVar   // follows log.level when the configuration is read again; may be nil
	Now     func() time.Time // nil: the system's clock
}

// Agent is a running agent.
type Agent struct {
	options Options
	started time.Time

	mu     sync.Mutex
	config Config // only what Reload takes over is ever written

	backend backend.Backend
	keys    *seal.Keyring
	log     *audit.Log
	vault   *vault.Vault

	workload  *workload.Source
	gate      *gate
	processes *process.Table

	sockets  *socket.Server
	unserved chan struct{} // closed when the sockets are served no longer
	serveErr error         // why, if not because they were closed; read after unserved
	mount    *fuse.FS      // nil when there is none
	mountErr error         // why there is none; nil when none is wanted

	closers []closer
}

// closer undoes one step of New.
type closer struct {
	what  string
	close func(context.Context) error
}

// New opens everything that the configuration names, and serves from then on.
// On an error nothing is left open. The end of ctx keeps it from starting, and
// has no effect afterwards.
//
// Errors: secret.ErrInvalid for the configuration, a key or a password;
// secret.ErrNotFound and secret.ErrSealed without a store or its root key;
// secret.ErrInUse; those of opening the store and the audit log.
func New(ctx context.Context, config Config, options Options) (*Agent, error) {
	defer wipe(options.Opener)
	ids, err := config.check()
	if err != nil {
		return nil, err
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	if options.Now == nil {
		options.Now = systemClock
	}
	a := &Agent{options: options, config: config, started: options.Now()}
	for _, step := range []func(context.Context, identities) error{
		a.openStore, a.openVault, a.openIdentity, a.openMount, a.openSockets,
	} {
		err := ctx.Err()
		if err == nil {
			err = step(ctx, ids)
		}
		if err != nil {
			return nil, errors.Join(err, a.close(ctx))
		}
	}
	a.sockets.SetServing(true)
	return a, nil
}

// Run serves until ctx ends, or until the sockets are served no longer, and then
// closes everything. The error says why nobody is served, and what could not be
// closed. It is called once.
func (a *Agent) Run(ctx context.Context) error {
	err := a.wait(ctx)
	return errors.Join(err, a.close(ctx))
}

// wait returns nil when ctx ends, or an error when nobody is served any more.
func (a *Agent) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		a.options.Logger.Info("stopping")
		return nil
	case <-a.unserved:
		err := a.unservedError()
		a.options.Logger.Error("stopping", "error", err)
		return err
	}
}

// close undoes the steps of New, also when ctx has ended.
func (a *Agent) close(ctx context.Context) error {
	var errs []error
	for _, c := range slices.Backward(a.closers) {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		if err := c.close(drain); err != nil {
			errs = append(errs, fmt.Errorf("closing %s: %w", c.what, err))
		}
		cancel()
	}
	a.closers = nil
	return errors.Join(errs...)
}

func (a *Agent) onClose(what string, close func(context.Context) error) {
	a.closers = append(a.closers, closer{what, close})
}

func withoutContext(close func() error) func(context.Context) error {
	return func(context.Context) error { return close() }
}

func (a *Agent) openStore(ctx context.Context, _ identities) error {
	b, err := openBackend(a.config.Store, true)
	if err != nil {
		return err
	}
	a.backend = b
	a.onClose("the store", withoutContext(b.Close))
	a.keys, err = a.unlock(ctx)
	if err != nil {
		return err
	}
	a.onClose("the keys", withoutContext(a.keys.Close))
	if err := a.keys.Protection(); err != nil {
		a.options.Logger.Warn("keys are less protected in memory than they could be", "error", err)
	}
	return nil
}

// unlock opens the root key. A store that forgets gets a new one each time.
func (a *Agent) unlock(ctx context.Context) (*seal.Keyring, error) {
	info, err := a.backend.Info(ctx)
	if err != nil {
		return nil, err
	}
	if info.Durable {
		return unlock(ctx, a.backend, a.options.Opener)
	}
	a.options.Logger.Warn("this store forgets everything when the agent stops", "driver", info.Driver)
	opener, err := forgottenPassword()
	if err != nil {
		return nil, err
	}
	defer opener.Wipe()
	return createLock(ctx, a.backend, "memory", opener)
}

func (a *Agent) openVault(ctx context.Context, ids identities) error {
	var err error
	a.log, err = openLog(ctx, a.backend, a.keys, a.config.Audit, audit.Config{
		Logger: a.options.Logger, Development: a.config.Development, Now: a.options.Now,
	})
	if err != nil {
		return err
	}
	a.onClose("the audit log", withoutContext(a.log.Close))
	a.vault, err = vault.Open(ctx, vault.Config{
		Backend: a.backend, Keys: a.keys, Log: a.log, Administrators: ids.administrators,
		Development: a.config.Development, Logger: a.options.Logger, Now: a.options.Now,
	})
	if err != nil {
		return err
	}
	a.onClose("the vault", withoutContext(a.vault.Close))
	return nil
}

func (a *Agent) openIdentity(ctx context.Context, ids identities) error {
	var err error
	a.workload, err = workload.Open(ctx, workload.Config{
		Address: a.config.Identity.WorkloadAPI, Logger: a.options.Logger, Now: a.options.Now,
	})
	if err != nil {
		return err
	}
	a.onClose("the Workload API", withoutContext(a.workload.Close))
	var attestor identity.Attestor
	if a.config.Identity.Broker != "" {
		client, err := broker.New(broker.Config{
			Address: a.config.Identity.Broker, Source: a.workload,
			TrustDomain: ids.trustDomain, Server: ids.brokerPrefix, Now: a.options.Now,
		})
		if err != nil {
			return err
		}
		a.onClose("the broker", withoutContext(client.Close))
		a.gate = openGate(ctx, client, a.workload.Ready(), a.options.Logger)
		attestor = a.gate
		a.onClose("the broker's check", withoutContext(a.gate.Close))
	} else {
		attestor = noBroker{}
	}
	a.processes, err = process.New(process.Config{
		Attestor: attestor, TrustDomains: []spiffeid.TrustDomain{ids.trustDomain}, TTL: identityTTL,
		Logger: a.options.Logger, Now: a.options.Now,
	})
	if err != nil {
		return err
	}
	a.onClose("process identity", withoutContext(a.processes.Close))
	return nil
}

func (a *Agent) openSockets(_ context.Context, _ identities) error {
	for _, path := range []string{a.config.Socket, a.config.AdminSocket} {
		if err := makeFolder(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("making the folder of the sockets: %w", err)
		}
	}
	var err error
	a.sockets, err = socket.New(socket.Config{
		Path: a.config.Socket, AdminPath: a.config.AdminSocket,
		Secrets: a.vault, Administration: a.vault, Statuses: a, Refusals: a.vault,
		Certificates: a.workload, Peers: a.processes, Logger: a.options.Logger,
	})
	if err != nil {
		return err
	}
	a.unserved = make(chan struct{})
	go func() {
		defer close(a.unserved)
		a.serveErr = a.sockets.Serve()
	}()
	a.onClose("the sockets", func(ctx context.Context) error {
		err := a.sockets.Close(ctx)
		<-a.unserved
		return err
	})
	return nil
}

// openMount tries to mount. Without the permission, or without FUSE, the
// sockets still serve. What another agent serves, or the configuration has
// wrong, is an error.
func (a *Agent) openMount(context.Context, identities) error {
	if !a.config.Mount.Enabled {
		return nil
	}
	feed := a.vault.Follow()
	mount, err := a.newMount(feed)
	if err != nil {
		feed.Close()
		if errors.Is(err, secret.ErrInUse) || errors.Is(err, secret.ErrInvalid) {
			return err
		}
		a.mountErr = err
		a.options.Logger.Error("secrets are not served as files; the sockets serve them", "error", err)
		return nil
	}
	a.mount = mount
	a.onClose("the mount", func(ctx context.Context) error {
		defer feed.Close()
		return mount.Close(ctx)
	})
	return nil
}

func (a *Agent) newMount(feed *vault.Feed) (*fuse.FS, error) {
	folder := filepath.Dir(a.config.Mount.Path)
	if err := makeFolder(folder, 0o755); err != nil {
		return nil, fmt.Errorf("making the folder of the mount: %w", err)
	}
	return fuse.New(fuse.Config{
		Dir: a.config.Mount.Path, SelfLink: a.config.Mount.Link,
		Private: filepath.Join(folder, ".keyhole-fs"),
		Threads: a.processes, Names: a.vault, Files: a.vault, Refusals: a.vault, Feed: feed,
		Logger: a.options.Logger, Now: a.options.Now,
	})
}

// makeFolder makes a folder that is missing, with exactly this mode whatever the
// umask says, and those around it, 0755.
func makeFolder(path string, mode fs.FileMode) error {
	err := os.Mkdir(path, mode)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeFolder(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		err = os.Mkdir(path, mode)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// Harden keeps other processes and core files away from the memory of this one.
// Call it first.
func Harden() error { return seal.HardenProcess() }

// mounted returns why there is no mount, or nil when there is, or when none is
// wanted.
func (a *Agent) mounted() error {
	if a.mount == nil {
		return a.mountErr
	}
	select {
	case <-a.mount.Done():
		return errors.New("somebody unmounted it; start the agent again")
	default:
		return nil
	}
}
