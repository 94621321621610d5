// SPDX-License-Identifier: Apache-2.0

package vault

import (
	"context"
	"fmt"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// Get returns one version of a secret, the current one for 0. The receiver
// wipes the values.
//
// Errors: ErrDenied, ErrNotFound for an absent secret or a version that is not
// live, ErrTampered, ErrUnavailable, ErrSealed.
func (v *Vault) Get(ctx context.Context, caller identity.Caller, path secret.Path, version secret.Version) (secret.Secret, error) {
	event, err := v.may(caller, "get", policy.Read, path)
	if err != nil {
		return secret.Secret{}, err
	}
	found, err := v.load(ctx, path, version)
	event.SecretID, event.Version, event.Revision = found.Info.ID, uint64(found.Version.Version), found.Info.Revision
	if err := v.finish(event, err); err != nil {
		found.Values.Wipe()
		return secret.Secret{}, err
	}
	return found, nil
}

// Describe returns what is known of a secret without its values: all versions,
// the deleted ones too. It needs list.
func (v *Vault) Describe(ctx context.Context, caller identity.Caller, path secret.Path) (secret.Info, error) {
	event, err := v.may(caller, "describe", policy.List, path)
	if err != nil {
		return secret.Info{}, err
	}
	s, revision, err := v.loadState(ctx, path, true)
	if err != nil {
		return secret.Info{}, v.finish(event, err)
	}
	event.SecretID, event.Revision = s.id, uint64(revision)
	return s.info(revision), v.finish(event, nil)
}

// List returns the secrets below prefix that the caller may list, the empty
// ones included, and that come after the given path; at most limit of them, and
// whether there are more. Unless it is recursive, it stops at the first level
// and returns the folders there.
func (v *Vault) List(_ context.Context, caller identity.Caller, prefix, after secret.Path, limit int, recursive bool) ([]secret.Entry, bool, error) {
	rules := v.rules()
	event := v.event(caller, "list", prefix, policy.Decision{Allowed: true})
	if len(caller.IDs) == 0 {
		return nil, false, v.refuse(event, fmt.Errorf("%w: %s may not list", secret.ErrDenied, nameOf(caller)))
	}
	var entries []secret.Entry
	more := false
	for c := range v.index.snapshot().below(prefix, after) {
		child, folder := c.child()
		if folder && !rules.Reaches(caller.IDs, child) {
			c.leave()
			continue
		}
		path := c.path()
		if !rules.Allows(caller.IDs, policy.List, path).Allowed {
			continue
		}
		if len(entries) == limit {
			more = true
			break
		}
		if folder && !recursive {
			entries = append(entries, secret.Entry{Path: child, Folder: true})
			c.leave()
			continue
		}
		entries = append(entries, secret.Entry{Path: path, Empty: c.entry.current == 0})
	}
	if err := v.finish(event, nil); err != nil {
		return nil, false, err
	}
	return entries, more, nil
}

// find returns what the index knows of a path that the caller may list.
func (v *Vault) find(path secret.Path) (entry, error) {
	if e, ok := v.index.get(path); ok {
		return e, nil
	}
	if err, ok := v.damaged[v.pathKey(path).ID]; ok {
		return entry{}, fmt.Errorf("%s: %w", path, err)
	}
	return entry{}, fmt.Errorf("%s: %w", path, secret.ErrNotFound)
}

// load opens a version and its values, the current one for 0. The index is a
// hint where to look; what the sealed records say counts.
func (v *Vault) load(ctx context.Context, path secret.Path, version secret.Version) (secret.Secret, error) {
	e, err := v.find(path)
	if err != nil {
		return secret.Secret{}, err
	}
	hint := version
	if hint == 0 {
		hint = e.current
	}
	for range 3 { // a write between the index and the store is met again at most once in a while
		records, err := v.fetch(ctx, [3]backend.Key{v.pathKey(path), versionKey(e.id, hint), payloadKey(e.id, hint)})
		if err != nil {
			return secret.Secret{}, err
		}
		if records[0].Rev == 0 {
			return secret.Secret{}, fmt.Errorf("%s: its record is gone from the store: %w", path, secret.ErrTampered)
		}
		s, err := v.openSecret(path, records[0], version != 0)
		if err != nil {
			return secret.Secret{}, fmt.Errorf("%s: %w", path, err)
		}
		info, err := s.pick(version)
		if err != nil {
			return secret.Secret{}, err
		}
		if info.Version != hint || s.id != e.id {
			hint, e.id = info.Version, s.id
			continue
		}
		values, err := v.openVersion(s.id, hint, records[1], records[2])
		if err != nil {
			return secret.Secret{}, fmt.Errorf("%s: %w", path, err)
		}
		return secret.Secret{Info: s.info(records[0].Rev), Version: info, Values: values}, nil
	}
	return secret.Secret{}, fmt.Errorf("%s: it changed faster than it could be read: %w", path, secret.ErrUnavailable)
}

// pick returns the version that a request asks for, the current one for 0.
func (s *state) pick(version secret.Version) (secret.VersionInfo, error) {
	if version == 0 {
		if s.live.Version == 0 {
			return secret.VersionInfo{}, fmt.Errorf("%s has no live version: %w", s.path, secret.ErrNotFound)
		}
		return s.live, nil
	}
	at, ok := s.version(version)
	if !ok {
		return secret.VersionInfo{}, fmt.Errorf("%s has no version %d: %w", s.path, version, secret.ErrNotFound)
	}
	if s.history[at].State != secret.Live {
		return secret.VersionInfo{}, fmt.Errorf("%s: version %d is %s: %w", s.path, version, s.history[at].State, secret.ErrNotFound)
	}
	return s.history[at], nil
}

// loadState opens the record of a secret.
func (v *Vault) loadState(ctx context.Context, path secret.Path, withHistory bool) (*state, backend.Seq, error) {
	if _, err := v.find(path); err != nil {
		return nil, 0, err
	}
	records, err := v.fetch(ctx, [3]backend.Key{v.pathKey(path)})
	if err != nil {
		return nil, 0, err
	}
	if records[0].Rev == 0 {
		return nil, 0, fmt.Errorf("%s: its record is gone from the store: %w", path, secret.ErrTampered)
	}
	s, err := v.openSecret(path, records[0], withHistory)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	return s, records[0].Rev, nil
}

// fetch returns the records of up to three keys, from the cache or in one cut
// from the store; one that is absent has Rev 0. Keys that are zero are left out.
func (v *Vault) fetch(ctx context.Context, keys [3]backend.Key) (found [3]backend.Record, err error) {
	n := len(keys)
	for n > 1 && keys[n-1].Table == 0 {
		n--
	}
	cached, ticket, ok := v.cache.get(found[:0], keys[:n])
	if ok {
		copy(found[:], cached)
		return found, nil
	}
	found = [3]backend.Record{}
	records, _, err := v.backend.Get(ctx, keys[:n])
	if err != nil {
		return found, fmt.Errorf("reading from the store: %w", err)
	}
	v.cache.put(ticket, records)
	for i, key := range keys[:n] {
		if len(records) > 0 && records[0].Key == key {
			found[i], records = records[0], records[1:]
		}
	}
	return found, nil
}
