// SPDX-License-Identifier: Apache-2.0

package vault

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"crypto/rand"

	"github.com/keyhole-agent/keyhole/agent/audit"
	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

const (
	// purgePage is how many secrets are destroyed in one step. Other writers
	// get their turn between steps.
	purgePage = 200

	// destroyStep bounds the versions destroyed in one batch, with two records
	// each. A secret with more loses the rest in batches before.
	destroyStep = 1000
)

// Purge destroys empty secrets: their data keys, ciphertext, history and name.
// It calls report with the number that it is about, then with the paths of each
// finished step. A dry run reports the paths in the same way and destroys
// nothing. A secret that is written or undeleted meanwhile stays. It may be
// interrupted between steps, and repeated.
//
// Errors: ErrDenied without super on sys/purge, that of report, of the context,
// ErrUnavailable.
func (v *Vault) Purge(ctx context.Context, caller identity.Caller, which secret.Purge, report func(secret.PurgeProgress) error) error {
	event, err := v.may(caller, "purge", policy.Super, powerPurge)
	if err != nil {
		return err
	}
	if which.OlderThan < 0 {
		return v.finish(event, fmt.Errorf("%w purge: the age is negative", secret.ErrInvalid))
	}
	event.Reason = describePurge(which)
	if err := v.finish(event, nil); err != nil {
		return err
	}
	until := v.now().Add(-which.OlderThan)
	found := 0
	err = v.eachEmpty(ctx, which, until.Unix(), func(page []candidate) error {
		found += len(page)
		return nil
	})
	if err != nil {
		return err
	}
	if err := report(secret.PurgeProgress{Found: found}); err != nil {
		return err
	}
	folders := map[secret.Path]struct{}{}
	err = v.eachEmpty(ctx, which, until.Unix(), func(page []candidate) error {
		paths := pathsOf(page)
		if !which.DryRun {
			if paths, err = v.destroy(ctx, event, page); err != nil {
				return err
			}
			for _, p := range paths {
				folders[p.Parent()] = struct{}{}
			}
		}
		return report(secret.PurgeProgress{Found: found, Paths: paths})
	})
	if which.DryRun {
		return err
	}
	// What was destroyed is cleaned up after, whether or not there was an error.
	if cleanErr := v.removeFolders(ctx, slices.Collect(maps.Keys(folders))); err == nil {
		err = cleanErr
	}
	if compacter, ok := v.backend.(backend.Compacter); ok && len(folders) > 0 {
		if compactErr := compacter.Compact(ctx); err == nil && compactErr != nil {
			err = fmt.Errorf("the secrets are destroyed, but their pages may still be in the store's files: %w", compactErr)
		}
	}
	return err
}

// candidate is a secret that a purge is about, as it was found.
type candidate struct {
	state  *state
	record backend.Record
}

func pathsOf(page []candidate) []secret.Path {
	paths := make([]secret.Path, 0, len(page))
	for _, c := range page {
		paths = append(paths, c.state.path)
	}
	return paths
}

// eachEmpty calls do with the empty secrets that which selects, those that are
// empty for the longest first. The index column says where to look, the sealed
// record decides.
func (v *Vault) eachEmpty(ctx context.Context, which secret.Purge, until int64, do func([]candidate) error) error {
	query := backend.Query{Table: backend.Secrets, Order: backend.ByEmpty, Until: until, Limit: purgePage}
	for {
		page, err := v.backend.Scan(ctx, query)
		if err != nil {
			return fmt.Errorf("looking for empty secrets: %w", err)
		}
		var candidates []candidate
		for _, r := range page.Records {
			s, err := v.openSecret(secret.Path{}, r, true)
			if err != nil {
				v.logger.Error("a purge leaves out a record that is refused", "record", fmt.Sprintf("%s/%x", r.Key.Table, r.Key.ID), "error", err)
				continue
			}
			selected := which.Prefix.IsRoot() || s.path == which.Prefix || which.Prefix.Contains(s.path)
			if selected && s.live.Version == 0 && s.emptyAt.Unix() <= until {
				candidates = append(candidates, candidate{s, r})
			}
		}
		if len(candidates) > 0 {
			if err := do(candidates); err != nil {
				return err
			}
		}
		if page.Next == "" {
			return nil
		}
		query.Cursor = page.Next
	}
}

// destroy removes the candidates that are still as they were found, and returns
// the paths of those it removed.
func (v *Vault) destroy(ctx context.Context, event audit.Event, page []candidate) ([]secret.Path, error) {
	var changes []*change
	for _, c := range page {
		c, err := v.destroyOldest(ctx, event, c)
		if err != nil {
			return nil, err
		}
		if c.state == nil {
			continue // somebody wrote it
		}
		ch := v.destruction(event, c)
		ch.batch.Ops = append(ch.batch.Ops, backend.Op{Record: backend.Record{Key: c.record.Key}, Delete: true})
		ch.applied = func() { v.index.remove(c.state.path) }
		changes = append(changes, ch)
	}
	var paths []secret.Path
	err := v.committer.submitAll(ctx, changes)
	for _, ch := range changes {
		if err == nil && !ch.result.Conflict {
			paths = append(paths, ch.paths...)
		}
	}
	return paths, err
}

// destruction is the change that deletes the records of all versions.
func (v *Vault) destruction(event audit.Event, c candidate) *change {
	intent := event
	intent.Phase, intent.Path, intent.SecretID, intent.Reason = audit.Intent, c.state.path.String(), c.state.id, ""
	_, _ = rand.Read(intent.Batch[:]) // never fails
	ch := &change{intent: &intent, paths: []secret.Path{c.state.path}}
	ch.batch.ID = intent.Batch
	ch.batch.If = []backend.Cond{{Key: c.record.Key, Rev: c.record.Rev}}
	for _, version := range c.state.history {
		for _, key := range []backend.Key{versionKey(c.state.id, version.Version), payloadKey(c.state.id, version.Version)} {
			ch.batch.Ops = append(ch.batch.Ops, backend.Op{Record: backend.Record{Key: key}, Delete: true})
		}
	}
	return ch
}

// destroyOldest shortens a history that is too long for one batch. The
// candidate it returns is the shortened one, without a state when somebody
// wrote the secret meanwhile.
func (v *Vault) destroyOldest(ctx context.Context, event audit.Event, c candidate) (candidate, error) {
	for len(c.state.history) > destroyStep {
		part := c
		first := *c.state
		first.history = c.state.history[:destroyStep]
		part.state = &first
		ch := v.destruction(event, part)
		ch.applied = func() {}
		rest := *c.state
		rest.history = c.state.history[destroyStep:]
		record, err := v.sealSecret(&rest)
		if err != nil {
			return candidate{}, err
		}
		ch.batch.Ops = append(ch.batch.Ops, backend.Op{Record: record})
		if err := v.committer.submit(ctx, ch); err != nil {
			return candidate{}, err
		}
		if ch.result.Conflict {
			return candidate{}, nil
		}
		record.Rev = ch.result.Seq
		c = candidate{state: &rest, record: record}
	}
	return c, nil
}

// removeFolders removes the given folders, and those above, that nothing lies
// under. A folder that somebody enters meanwhile stays.
func (v *Vault) removeFolders(ctx context.Context, folders []secret.Path) error {
	deepest := func(a, b secret.Path) int {
		return cmp.Compare(strings.Count(b.String(), "/"), strings.Count(a.String(), "/"))
	}
	slices.SortFunc(folders, deepest)
	for len(folders) > 0 {
		folder := folders[0]
		folders = folders[1:]
		if folder.IsRoot() || v.index.snapshot().occupied(folder) {
			continue
		}
		removed, err := v.removeFolder(ctx, folder)
		if err != nil {
			return fmt.Errorf("removing a folder that nothing lies under any more: %w", err)
		}
		if parent := folder.Parent(); removed && !slices.Contains(folders, parent) {
			at, _ := slices.BinarySearchFunc(folders, parent, deepest)
			folders = slices.Insert(folders, at, parent)
		}
	}
	return nil
}

func (v *Vault) removeFolder(ctx context.Context, folder secret.Path) (bool, error) {
	key := v.pathKey(folder)
	records, _, err := v.backend.Get(ctx, []backend.Key{key})
	if err != nil || len(records) == 0 || !isFolder(records[0]) {
		return false, err
	}
	ch := &change{applied: func() {}, batch: backend.Batch{
		If:  []backend.Cond{{Key: key, Rev: records[0].Rev}, {Key: key, NoChildren: true}},
		Ops: []backend.Op{{Record: backend.Record{Key: key}, Delete: true}},
	}}
	if err := v.committer.submit(ctx, ch); err != nil {
		return false, err
	}
	return !ch.result.Conflict, nil
}

func describePurge(which secret.Purge) string {
	what := "all empty secrets"
	if !which.Prefix.IsRoot() {
		what = "empty secrets below " + which.Prefix.String()
	}
	if which.OlderThan > 0 {
		what += ", empty for at least " + which.OlderThan.String()
	}
	if which.DryRun {
		what += ", dry run"
	}
	return what
}
