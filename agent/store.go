// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/keyhole-agent/keyhole/agent/audit"
	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/agent/vault"
	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/backend/memory"
	"github.com/keyhole-agent/keyhole/backend/sqlite"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket"
)

// openBackend opens the driver that the configuration names. Only an
// initialization makes a store: an agent that finds none has lost it.
func openBackend(config StoreConfig, mustExist bool) (backend.Backend, error) {
	switch config.Driver {
	case "sqlite":
		b, err := sqlite.Open(sqlite.Config{Path: config.Path, MustExist: mustExist})
		if errors.Is(err, secret.ErrNotFound) {
			return nil, fmt.Errorf("%w; restore it, or make a new one with keyhole init", err)
		}
		if err != nil {
			return nil, err
		}
		return b, nil
	case "memory":
		return memory.New(memory.Config{})
	}
	return nil, fmt.Errorf("%w setting store.driver: %q is no driver", secret.ErrInvalid, config.Driver)
}

// InitKeyfile makes the store and its root key, which is opened by a keyfile
// that is made, too. It returns secret.ErrExists when the store has a root key
// already, or the keyfile is there; then, and on any other error, no keyfile was
// made or replaced.
func InitKeyfile(ctx context.Context, config StoreConfig, path string) error {
	keyfile, err := seal.NewKeyfile(path)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %w", secret.ErrExists, err)
	}
	if err != nil {
		return err
	}
	defer keyfile.Wipe()
	if err := initialize(ctx, config, "keyfile", keyfile); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// InitPassword makes the store and its root key, which is opened by the
// password. It clears the password. It returns secret.ErrExists when the store
// has a root key already.
func InitPassword(ctx context.Context, config StoreConfig, password []byte) error {
	defer clear(password)
	opener, err := seal.NewPassword(password)
	if err != nil {
		return err
	}
	defer opener.Wipe()
	return initialize(ctx, config, "password", opener)
}

func initialize(ctx context.Context, config StoreConfig, slot string, opener seal.Opener) (err error) {
	b, err := openBackend(config, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	info, err := b.Info(ctx)
	if err != nil {
		return err
	}
	if !info.Durable {
		return fmt.Errorf("%w setting store.driver: a store of the driver %s forgets its root key, so there is nothing to make", secret.ErrInvalid, info.Driver)
	}
	lock, err := readLock(ctx, b)
	if err != nil {
		return err
	}
	if lock != nil {
		return fmt.Errorf("%w: the store %s has a root key already; use it as it is, or choose another store.path", secret.ErrExists, config.Path)
	}
	keys, err := createLock(ctx, b, slot, opener)
	if err != nil {
		return err
	}
	return keys.Close()
}

func readLock(ctx context.Context, b backend.Backend) ([]byte, error) {
	records, _, err := b.Get(ctx, []backend.Key{vault.LockKey})
	if err != nil || len(records) == 0 {
		return nil, err
	}
	return records[0].Body, nil
}

func createLock(ctx context.Context, b backend.Backend, slot string, opener seal.Opener) (*seal.Keyring, error) {
	info, err := b.Info(ctx)
	if err != nil {
		return nil, err
	}
	keys, lock, err := seal.Create(info.StoreID, seal.NewSlot{Name: slot, Created: systemClock(), Opener: opener})
	if err != nil {
		return nil, fmt.Errorf("making the root key: %w", err)
	}
	results, err := b.Commit(ctx, []backend.Batch{{
		If:  []backend.Cond{{Key: vault.LockKey}},
		Ops: []backend.Op{{Record: backend.Record{Key: vault.LockKey, Body: lock}}},
	}})
	if err == nil && results[0].Conflict {
		err = fmt.Errorf("%w: the store got a root key at the same moment", secret.ErrExists)
	}
	if err != nil {
		_ = keys.Close() // only clears memory
		return nil, err
	}
	return keys, nil
}

// openLog opens the audit log, which must reach at least as far as the head
// that is anchored in the store.
func openLog(ctx context.Context, b backend.Backend, keys *seal.Keyring, config AuditConfig, base audit.Config) (*audit.Log, error) {
	anchor, err := readAnchor(ctx, b)
	if err != nil {
		return nil, err
	}
	if info, err := b.Info(ctx); err != nil {
		return nil, err
	} else if anchor == nil && info.Seq > 1 {
		base.Logger.Error("the store was written to and has no anchor of the audit log: somebody may have removed it, and records with it")
	}
	base.Dir, base.Key, base.Anchor, base.StrictReads = config.Path, keys.AuditKey(), anchor, config.Reads == "strict"
	return audit.Open(base)
}

// readAnchor returns the last head of the audit log that is kept in the store,
// or nil.
func readAnchor(ctx context.Context, b backend.Backend) (*audit.Head, error) {
	records, _, err := b.Get(ctx, []backend.Key{vault.AnchorKey})
	if err != nil || len(records) == 0 {
		return nil, err
	}
	head, err := audit.ParseHead(records[0].Body)
	if err != nil {
		return nil, fmt.Errorf("reading the anchor of the audit log: %w", err)
	}
	return &head, nil
}

// VerifyAudit checks the audit log of a store that no agent has open; an agent
// that runs checks its own. It clears the opener. Errors: secret.ErrInUse, and
// those of New that are about the store and its root key.
func VerifyAudit(ctx context.Context, config Config, opener seal.Opener) (socket.AuditReport, error) {
	defer wipe(opener)
	b, err := openBackend(config.Store, true)
	if err != nil {
		return socket.AuditReport{}, err
	}
	defer func() { _ = b.Close() }() // nothing was written
	keys, err := unlock(ctx, b, opener)
	if err != nil {
		return socket.AuditReport{}, err
	}
	defer func() { _ = keys.Close() }() // only clears memory
	return verifyLog(ctx, config.Audit.Path, b, keys)
}

// verifyLog checks the log against its key and against the head that the store
// has. A log with problems is no error.
func verifyLog(ctx context.Context, dir string, b backend.Backend, keys *seal.Keyring) (socket.AuditReport, error) {
	anchor, err := readAnchor(ctx, b)
	if err != nil {
		return socket.AuditReport{}, err
	}
	key := keys.AuditKey()
	defer clear(key)
	report, err := audit.Verify(dir, key, anchor)
	if err != nil && len(report.Problems) == 0 { // problems are an answer
		return socket.AuditReport{}, err
	}
	found := socket.AuditReport{Segments: report.Segments, Records: report.Records, Omitted: report.Omitted}
	for _, problem := range report.Problems {
		found.Problems = append(found.Problems, problem.String())
	}
	return found, nil
}
