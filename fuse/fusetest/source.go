// SPDX-License-Identifier: Apache-2.0

package fusetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/fuse"
	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// Source keeps secrets in a map and serves them to everybody, but for what was
// hidden or forbidden. It is all that the filesystem needs but the identification
// of threads. The zero Source is empty.
type Source struct {
	Now func() time.Time // when a version is written

	mu        sync.Mutex
	secrets   map[secret.Path]*stored
	ids       byte
	hidden    map[rule]bool
	forbidden map[rule]bool
	failures  map[secret.Path]error
	refusals  []string
	pending   secret.Changes
	ended     error
	following bool          // the follower waits, and knows everything
	changed   chan struct{} // closed when pending, ended or following change
}

type stored struct {
	info   secret.Info
	values map[secret.Version]map[string][]byte
}

// rule is about one SPIFFE ID and one path.
type rule struct {
	id   string
	path secret.Path
}

var (
	_ fuse.Names    = (*Source)(nil)
	_ fuse.Files    = (*Source)(nil)
	_ fuse.Refusals = (*Source)(nil)
	_ fuse.Feed     = (*Source)(nil)
)

// Put writes the next version of a secret.
func (s *Source) Put(path string, values map[string]string) error {
	parsed, err := secret.ParsePath(path)
	if err != nil {
		return err
	}
	content := make(map[string][]byte, len(values))
	for key, value := range values {
		content[key] = []byte(value)
	}
	if _, err := secret.NewValues(content); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.secrets == nil {
		s.secrets = map[secret.Path]*stored{}
	}
	held := s.secrets[parsed]
	if held == nil {
		s.ids++
		held = &stored{values: map[secret.Version]map[string][]byte{}}
		held.info = secret.Info{Path: parsed, ID: secret.ID{s.ids}, Created: s.now()}
		s.secrets[parsed] = held
	}
	held.info.Latest++
	held.values[held.info.Latest] = content
	held.info.Versions = append(slices.Clone(held.info.Versions), secret.VersionInfo{Version: held.info.Latest, Created: s.now()})
	return s.settleLocked(held)
}

// Delete stops serving a version, the current one for 0.
func (s *Source) Delete(path string, version secret.Version) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.secrets[secret.MustParsePath(path)]
	if held == nil {
		return secret.ErrNotFound
	}
	if version == 0 {
		version = held.info.Current
	}
	held.info.Versions = slices.Clone(held.info.Versions)
	for i := range held.info.Versions {
		if held.info.Versions[i].Version == version {
			held.info.Versions[i].State = secret.Deleted
		}
	}
	return s.settleLocked(held)
}

// Purge forgets a secret.
func (s *Source) Purge(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.secrets, secret.MustParsePath(path))
	s.tellLocked(secret.Changes{Paths: []secret.Path{secret.MustParsePath(path)}})
}

// settleLocked works out what is current, and tells the follower.
func (s *Source) settleLocked(held *stored) error {
	info := &held.info
	info.Current, info.Keys = 0, nil
	info.Revision++
	info.Updated = s.now()
	for _, version := range info.Versions {
		if version.State == secret.Live {
			info.Current = version.Version
		}
	}
	if info.Current != 0 {
		values, err := secret.NewValues(held.values[info.Current])
		if err != nil {
			return err
		}
		info.Keys = values.Sizes()
		values.Wipe()
	}
	s.tellLocked(secret.Changes{Paths: []secret.Path{info.Path}})
	return nil
}

// Hide takes away, or gives back, that an ID may list or read a secret; Forbid
// takes away only that it may read it. Both are changes of policy.
func (s *Source) Hide(id, path string, hidden bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hidden == nil {
		s.hidden = map[rule]bool{}
	}
	s.hidden[rule{id, secret.MustParsePath(path)}] = hidden
	s.tellLocked(secret.Changes{All: true})
}

// Forbid is described at Hide.
func (s *Source) Forbid(id, path string, forbidden bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forbidden == nil {
		s.forbidden = map[rule]bool{}
	}
	s.forbidden[rule{id, secret.MustParsePath(path)}] = forbidden
	s.tellLocked(secret.Changes{All: true})
}

// Fail makes opening and reading a secret fail, until err is nil. It is no
// change that the follower is told of.
func (s *Source) Fail(path string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failures == nil {
		s.failures = map[secret.Path]error{}
	}
	s.failures[secret.MustParsePath(path)] = err
}

// EndFeed makes Next return err from now on.
func (s *Source) EndFeed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = err
	s.tellLocked(secret.Changes{})
}

// Refused returns what was refused, as "operation: reason".
func (s *Source) Refused() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.refusals)
}

// Folder implements fuse.Names.
func (s *Source) Folder(_ context.Context, view identity.Caller, folder secret.Path) ([]secret.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[secret.Path]secret.Entry{}
	for path, held := range s.secrets {
		if !folder.Contains(path) || s.hiddenLocked(view, path) {
			continue
		}
		entry := secret.Entry{Path: path, Empty: held.info.Current == 0}
		for entry.Path.Parent() != folder {
			entry = secret.Entry{Path: entry.Path.Parent(), Folder: true}
		}
		found[entry.Path] = entry
	}
	entries := make([]secret.Entry, 0, len(found))
	for _, entry := range found {
		entries = append(entries, entry)
	}
	slices.SortFunc(entries, func(a, b secret.Entry) int { return strings.Compare(a.Path.Base(), b.Path.Base()) })
	return entries, nil
}

// Look implements fuse.Names.
func (s *Source) Look(_ context.Context, view identity.Caller, path secret.Path) (secret.Entry, secret.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if held := s.secrets[path]; held != nil && !s.hiddenLocked(view, path) {
		return secret.Entry{Path: path, Empty: held.info.Current == 0}, held.info, nil
	}
	for below := range s.secrets {
		if path.Contains(below) && !s.hiddenLocked(view, below) {
			return secret.Entry{Path: path, Folder: true}, secret.Info{}, nil
		}
	}
	return secret.Entry{}, secret.Info{}, secret.ErrNotFound
}

// Open implements fuse.Files.
func (s *Source) Open(_ context.Context, caller, view identity.Caller, file secret.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, who := range []identity.Caller{caller, view} {
		if _, err := s.valuesLocked(who, file); err != nil {
			return err
		}
	}
	return nil
}

// Read implements fuse.Files.
func (s *Source) Read(_ context.Context, view identity.Caller, file secret.File) (secret.Values, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	content, err := s.valuesLocked(view, file)
	if err != nil {
		return secret.Values{}, err
	}
	return secret.NewValues(content)
}

func (s *Source) valuesLocked(who identity.Caller, file secret.File) (map[string][]byte, error) {
	held := s.secrets[file.Path]
	if held == nil || held.info.ID != file.ID || s.hiddenLocked(who, file.Path) {
		return nil, secret.ErrNotFound
	}
	for _, id := range who.IDs {
		if s.forbidden[rule{id.String(), file.Path}] {
			return nil, fmt.Errorf("%s may not read it: %w", id, secret.ErrDenied)
		}
	}
	for _, version := range held.info.Versions {
		if version.Version == file.Version && version.State == secret.Live {
			return held.values[file.Version], s.failures[file.Path]
		}
	}
	return nil, secret.ErrNotFound
}

func (s *Source) hiddenLocked(who identity.Caller, path secret.Path) bool {
	return slices.ContainsFunc(who.IDs, func(id spiffeid.ID) bool { return s.hidden[rule{id.String(), path}] })
}

// Refuse implements fuse.Refusals.
func (s *Source) Refuse(_ context.Context, _ identity.Caller, operation string, reason error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusals = append(s.refusals, fmt.Sprintf("%s: %v", operation, reason))
	return nil
}

// Next implements fuse.Feed.
func (s *Source) Next(ctx context.Context) (changes secret.Changes, err error) {
	err = s.until(ctx, func() bool {
		if s.ended != nil || s.pending.All || len(s.pending.Paths) > 0 {
			changes, s.pending, s.following = s.pending, secret.Changes{}, false
			return true
		}
		if !s.following {
			s.following = true
			s.announceLocked()
		}
		return false
	})
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		err = s.ended
	}
	return changes, err
}

// Settle waits until the follower has dealt with all changes.
func (s *Source) Settle(ctx context.Context) error {
	return s.until(ctx, func() bool { return s.following && !s.pending.All && len(s.pending.Paths) == 0 })
}

// until waits until condition, called with mu held, is true.
func (s *Source) until(ctx context.Context, condition func() bool) error {
	for {
		s.mu.Lock()
		if condition() {
			s.mu.Unlock()
			return nil
		}
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Source) tellLocked(changes secret.Changes) {
	s.pending.All = s.pending.All || changes.All
	s.pending.Paths = append(s.pending.Paths, changes.Paths...)
	s.announceLocked()
}

func (s *Source) announceLocked() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

func (s *Source) now() time.Time {
	if s.Now == nil {
		return time.Unix(1_700_000_000, 0)
	}
	return s.Now()
}
