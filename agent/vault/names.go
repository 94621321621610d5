// SPDX-License-Identifier: Apache-2.0

package vault

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// The filesystem's side of the door. A view shows what the identity that it was
// made for may list. An empty secret is an empty folder: what is mounted over it
// survives a delete and an undelete.

// Folder returns what the view shows directly in folder, in byte order. The
// walk is cut at folders that no rule reaches.
func (v *Vault) Folder(_ context.Context, view identity.Caller, folder secret.Path) ([]secret.Entry, error) {
	rules := v.rules()
	var entries []secret.Entry
	for c := range v.index.snapshot().below(folder, secret.Path{}) {
		child, isFolder := c.child()
		if isFolder && !rules.Reaches(view.IDs, child) {
			c.leave()
			continue
		}
		if !rules.Allows(view.IDs, policy.List, c.path()).Allowed {
			continue
		}
		entries = append(entries, secret.Entry{Path: child, Folder: isFolder})
		if isFolder {
			c.leave()
		}
	}
	return entries, nil
}

// Look describes one name of the view. The Info is zero for a folder. Looking
// at a secret that exists and that the view may not show is audited, and at a
// folder of such secrets, too: that is where the way to them ends. Whoever looks
// is told that nothing is there.
func (v *Vault) Look(ctx context.Context, view identity.Caller, path secret.Path) (secret.Entry, secret.Info, error) {
	absent := fmt.Errorf("%s: %w", path, secret.ErrNotFound)
	e, err := v.find(path)
	if errors.Is(err, secret.ErrNotFound) {
		shown, kept := v.shows(view, path)
		if shown {
			return secret.Entry{Path: path, Folder: true}, secret.Info{}, nil
		}
		if kept {
			event := v.event(view, "lookup", path, policy.Decision{})
			_ = v.refuse(event, secret.ErrDenied) // the answer hides the reason
		}
		return secret.Entry{}, secret.Info{}, absent
	}
	decision := v.rules().Allows(view.IDs, policy.List, path)
	if !decision.Allowed {
		event := v.event(view, "lookup", path, decision)
		event.SecretID = e.id
		_ = v.refuse(event, secret.ErrDenied) // the answer hides the reason
		return secret.Entry{}, secret.Info{}, absent
	}
	if err != nil {
		return secret.Entry{}, secret.Info{}, err
	}
	s, revision, err := v.loadState(ctx, path, false)
	if err != nil {
		return secret.Entry{}, secret.Info{}, err
	}
	return secret.Entry{Path: path, Empty: s.live.Version == 0}, s.info(revision), nil
}

// shows reports whether anything that the view may show lies under folder, and,
// when nothing does, whether something lies there that is kept from the view.
func (v *Vault) shows(view identity.Caller, folder secret.Path) (shown, kept bool) {
	rules, names := v.rules(), v.index.snapshot()
	if !rules.Reaches(view.IDs, folder) {
		return false, names.occupied(folder)
	}
	for c := range names.below(folder, secret.Path{}) {
		allowed := rules.Allows(view.IDs, policy.List, c.path()).Allowed
		if allowed {
			return true, false
		}
		kept = kept || !allowed
	}
	return false, kept
}

// Open decides whether caller may open file through the view, and audits it.
// Both must be allowed to read: a view shows no more than its identity may
// read, also to those who may read more.
func (v *Vault) Open(ctx context.Context, caller, view identity.Caller, file secret.File) error {
	event, err := v.may(caller, "open", policy.Read, file.Path)
	if err != nil {
		return v.hide(view, file.Path, err)
	}
	event.SecretID, event.Version = file.ID, uint64(file.Version)
	if !v.rules().Allows(view.IDs, policy.Read, file.Path).Allowed {
		return v.refuse(event, fmt.Errorf("%w: the identity of this view may not read %s", secret.ErrDenied, file.Path))
	}
	return v.finish(event, v.served(ctx, file))
}

// hide keeps a denial from telling that the secret exists to a view that may
// not list it any more.
func (v *Vault) hide(view identity.Caller, path secret.Path, denial error) error {
	if v.rules().Allows(view.IDs, policy.List, path).Allowed {
		return denial
	}
	return fmt.Errorf("%s: %w", path, secret.ErrNotFound)
}

// served reports whether the version behind a file is a live one.
func (v *Vault) served(ctx context.Context, file secret.File) error {
	e, err := v.find(file.Path)
	if err != nil {
		return err
	}
	if e.id != file.ID {
		return fmt.Errorf("%s was purged and made anew: %w", file.Path, secret.ErrNotFound)
	}
	if e.current == file.Version {
		return nil
	}
	s, _, err := v.loadState(ctx, file.Path, true)
	if err != nil {
		return err
	}
	_, err = s.pick(file.Version)
	return err
}

// Read returns the values behind a file that was opened, as long as the view
// may read them and the version is live. The opening was audited; a denial is.
// The receiver wipes the values.
func (v *Vault) Read(ctx context.Context, view identity.Caller, file secret.File) (secret.Values, error) {
	if _, err := v.may(view, "read", policy.Read, file.Path); err != nil {
		return secret.Values{}, err
	}
	if err := v.served(ctx, file); err != nil {
		return secret.Values{}, err
	}
	found, err := v.load(ctx, file.Path, file.Version)
	if err != nil {
		return secret.Values{}, err
	}
	if found.Info.ID != file.ID {
		found.Values.Wipe()
		return secret.Values{}, fmt.Errorf("%s was purged and made anew: %w", file.Path, secret.ErrNotFound)
	}
	return found.Values, nil
}
