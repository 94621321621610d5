// SPDX-License-Identifier: Apache-2.0

package vault

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/keyhole-agent/keyhole/agent/audit"
	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// Put writes the next version of a secret and makes it current. The values stay
// the caller's to wipe. The Info describes the new version alone.
//
// Errors: ErrDenied, ErrInvalid, ErrExists when the path is a folder or lies
// under a secret, ErrTampered, ErrUnavailable, secret.ErrFull.
func (v *Vault) Put(ctx context.Context, caller identity.Caller, path secret.Path, values secret.Values) (secret.Info, error) {
	event, err := v.may(caller, "put", policy.Write, path)
	if err != nil {
		return secret.Info{}, err
	}
	if err := path.CheckStorable(); err != nil {
		return secret.Info{}, v.finish(event, err)
	}
	if values.Len() == 0 {
		return secret.Info{}, v.finish(event, fmt.Errorf("%w secret: it needs at least one key", secret.ErrInvalid))
	}
	return v.update(ctx, path, event, func(tx *backend.Tx, s *state) (*state, error) {
		now := v.now().UTC()
		if s == nil {
			if err := v.enterFolders(tx, path); err != nil {
				return nil, err
			}
			s = &state{path: path, id: newID(), created: now}
		}
		s.latest++
		s.keys = values.Sizes()
		size := 0
		for _, k := range s.keys {
			size += k.Size
		}
		s.history = append(s.history, secret.VersionInfo{
			Version: s.latest, Created: now, Size: size, Writer: event.DecidingID.String(),
		})
		s.settle(now)
		key, payload, err := v.sealVersion(s.id, s.latest, values)
		if err != nil {
			return nil, err
		}
		tx.Put(key)
		tx.Put(payload)
		return s, nil
	})
}

// Delete stops serving the selected versions, the current one by default. They
// stay in the store. To delete what is deleted already changes nothing.
//
// Errors: ErrDenied, also for an absent secret that the caller may not list;
// ErrNotFound; ErrTampered; ErrUnavailable; secret.ErrFull.
func (v *Vault) Delete(ctx context.Context, caller identity.Caller, path secret.Path, which secret.Selection) (secret.Info, error) {
	event, err := v.may(caller, "delete", policy.Write, path)
	if err != nil {
		return secret.Info{}, err
	}
	return v.update(ctx, path, event, func(tx *backend.Tx, s *state) (*state, error) {
		if s == nil {
			if !v.rules().Allows(caller.IDs, policy.List, path).Allowed {
				return nil, fmt.Errorf("%w: %s may not delete %s", secret.ErrDenied, nameOf(caller), path)
			}
			return nil, fmt.Errorf("%s: %w", path, secret.ErrNotFound)
		}
		before := s.live.Version
		now := v.now().UTC()
		if err := s.delete(which, now); err != nil {
			return nil, err
		}
		s.settle(now)
		if s.live.Version != 0 && s.live.Version != before {
			if err := v.fillKeys(tx, s); err != nil {
				return nil, err
			}
		}
		return s, nil
	})
}

// delete marks the selected versions.
func (s *state) delete(which secret.Selection, now time.Time) error {
	versions := which.Versions
	switch {
	case which.All:
		for i := range s.history {
			s.deleteAt(i, now)
		}
		return nil
	case len(versions) == 0 && s.live.Version == 0:
		return fmt.Errorf("%s has no live version: %w", s.path, secret.ErrNotFound)
	case len(versions) == 0:
		versions = []secret.Version{s.live.Version}
	}
	for _, version := range versions {
		at, ok := s.version(version)
		if !ok {
			return fmt.Errorf("%s has no version %d: %w", s.path, version, secret.ErrNotFound)
		}
		s.deleteAt(at, now)
	}
	return nil
}

func (s *state) deleteAt(at int, now time.Time) {
	if s.history[at].State == secret.Live {
		s.history[at].State, s.history[at].DeletedAt = secret.Deleted, now
	}
}

// fillKeys reads which keys the version has that became current.
func (v *Vault) fillKeys(tx *backend.Tx, s *state) error {
	records, err := tx.Get(versionKey(s.id, s.live.Version), payloadKey(s.id, s.live.Version))
	if err != nil {
		return err
	}
	values, err := v.openVersion(s.id, s.live.Version, records[0], records[1])
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	s.keys = values.Sizes()
	values.Wipe()
	return nil
}

// update changes one secret in a transaction, and gives back its description.
// edit gets nil for a secret that does not exist.
func (v *Vault) update(ctx context.Context, path secret.Path, event audit.Event, edit func(*backend.Tx, *state) (*state, error)) (secret.Info, error) {
	_, _ = rand.Read(event.Batch[:]) // never fails
	var after *state
	store := transaction{vault: v, prepare: func() *change {
		// A copy of its own for each attempt: one that was given up on may
		// still be under way.
		s, intent := after, event
		intent.Phase, intent.SecretID, intent.Version = audit.Intent, s.id, uint64(s.latest)
		return &change{
			intent:  &intent,
			paths:   []secret.Path{path},
			applied: func() { v.index.set(path, entry{id: s.id, current: s.live.Version}) },
		}
	}}
	result, err := backend.Update(ctx, store, event.Batch, func(tx *backend.Tx) error {
		records, err := tx.Get(v.pathKey(path))
		if err != nil {
			return err
		}
		var s *state
		switch {
		case records[0].Rev == 0:
		case isFolder(records[0]):
			return fmt.Errorf("%w: %s is a folder, because secrets lie under it", secret.ErrExists, path)
		default:
			if s, err = v.openSecret(path, records[0], true); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		if after, err = edit(tx, s); err != nil {
			return err
		}
		record, err := v.sealSecret(after)
		if err != nil {
			return err
		}
		tx.Put(record)
		return nil
	})
	if err != nil {
		return secret.Info{}, v.finish(event, err)
	}
	info := after.info(result.Seq)
	if at, ok := after.version(after.latest); ok {
		info.Versions = []secret.VersionInfo{after.history[at]}
	}
	return info, nil
}

// enterFolders makes sure that every segment above path is a folder, and stays
// one until the transaction commits.
func (v *Vault) enterFolders(tx *backend.Tx, path secret.Path) error {
	var folders []secret.Path
	var keys []backend.Key
	for p := path.Parent(); !p.IsRoot(); p = p.Parent() {
		folders, keys = append(folders, p), append(keys, v.pathKey(p))
	}
	if len(keys) == 0 {
		return nil
	}
	records, err := tx.Get(keys...)
	if err != nil {
		return err
	}
	for i, r := range records {
		switch {
		case r.Rev == 0:
			folder, err := v.sealFolder(folders[i])
			if err != nil {
				return err
			}
			tx.Put(folder)
		case !isFolder(r):
			return fmt.Errorf("%w: %s is a secret, so nothing can lie under it", secret.ErrExists, folders[i])
		default:
			if _, err := v.openFolder(r); err != nil {
				return fmt.Errorf("%s: %w", folders[i], err)
			}
		}
	}
	return nil
}
