// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/identity/process"
	"github.com/keyhole-agent/keyhole/secret"
)

// Rule says which processes have which IDs. All fields that are set must match,
// and at least one must be set.
type Rule struct {
	// IDs, all of the server's trust domain. Several, or none at all, are for
	// tests; a file has exactly one.
	IDs []spiffeid.ID

	UID        *uint32 // nil: any
	GID        *uint32 // the primary group; nil: any
	Executable string  // absolute path, as /proc/<pid>/exe shows it; "": any
	SHA256     []byte  // of the executable's content, 32 bytes; empty: any
}

// check says what is wrong with a rule, or nil. The error is secret.ErrInvalid.
func (r Rule) check(domain spiffeid.TrustDomain) error {
	if r.UID == nil && r.GID == nil && r.Executable == "" && len(r.SHA256) == 0 {
		return fmt.Errorf("%w rule: it needs at least one of uid, gid, executable and sha256", secret.ErrInvalid)
	}
	if r.Executable != "" && r.Executable[0] != '/' {
		return fmt.Errorf("%w rule: the executable %q is not an absolute path", secret.ErrInvalid, r.Executable)
	}
	if len(r.SHA256) != 0 && len(r.SHA256) != sha256.Size {
		return fmt.Errorf("%w rule: a SHA-256 has %d bytes, not %d", secret.ErrInvalid, sha256.Size, len(r.SHA256))
	}
	for _, id := range r.IDs {
		if !id.MemberOf(domain) {
			return fmt.Errorf("%w rule: %s is not of the trust domain %q", secret.ErrInvalid, id, domain.Name())
		}
	}
	return nil
}

func checkRules(rules []Rule, domain spiffeid.TrustDomain) error {
	for i, rule := range rules {
		if err := rule.check(domain); err != nil {
			return fmt.Errorf("workload %d: %w", i+1, err)
		}
	}
	return nil
}

// matches reports whether the rule is about a process. sum returns the SHA-256
// of its executable and is asked only when everything else matches. When it
// cannot tell, the rule might match, and nobody knows: that is an error.
func (r Rule) matches(about identity.Process, sum func() ([]byte, error)) (bool, error) {
	switch {
	case r.UID != nil && *r.UID != about.UID,
		r.GID != nil && *r.GID != about.GID,
		r.Executable != "" && r.Executable != about.Executable:
		return false, nil
	case len(r.SHA256) == 0:
		return true, nil
	}
	actual, err := sum()
	if err != nil {
		return false, err
	}
	return bytes.Equal(actual, r.SHA256), nil
}

// decide returns the IDs that rules give to a process, and whether any of them
// is about it. Rules that disagree give it none.
func decide(rules []Rule, about identity.Process, sum func() ([]byte, error)) (ids []spiffeid.ID, found, conflict bool, err error) {
	for _, rule := range rules {
		match, err := rule.matches(about, sum)
		if err != nil {
			return nil, false, false, err
		}
		if !match {
			continue
		}
		given := slices.Clone(rule.IDs)
		slices.SortFunc(given, compareIDs)
		given = slices.Compact(given)
		if found && !slices.Equal(ids, given) {
			return nil, true, true, nil
		}
		ids, found = given, true
	}
	return ids, found, false, nil
}

func compareIDs(a, b spiffeid.ID) int { return bytes.Compare([]byte(a.String()), []byte(b.String())) }

// entitled returns the IDs of a process that is held, as it is now. None come
// for one that has exited or cannot be looked at.
func (s *Server) entitled(by *state, held *holder) []spiffeid.ID {
	pid := held.pid
	if pid == os.Getpid() && !s.config.Self.IsZero() {
		return []spiffeid.ID{s.config.Self}
	}
	ids, err := s.look(by, pid)
	if err != nil {
		s.config.Logger.Warn("a process gets no SPIFFE ID", "pid", pid, "reason", err)
		return nil
	}
	// What was seen belongs to the process that is held, if that still lives:
	// until then nobody else has its number.
	if !held.alive() {
		return nil
	}
	return ids
}

func (s *Server) look(by *state, pid int) ([]spiffeid.ID, error) {
	now, err := process.Open(pid)
	if err != nil {
		return nil, err
	}
	defer now.Close()
	about := now.Info()
	ids, found, conflict, err := decide(by.rules, about, func() ([]byte, error) { return executableSum(now) })
	switch {
	case err != nil:
		return nil, err
	case conflict:
		return nil, fmt.Errorf("rules give different IDs to user %d, group %d, executable %q", about.UID, about.GID, about.Executable)
	case found:
		return ids, nil
	}
	id, err := spiffeid.FromSegments(s.config.TrustDomain, "uid", fmt.Sprint(about.UID))
	if err != nil {
		return nil, err
	}
	return []spiffeid.ID{id}, nil
}

// executableSum reads the program through the process, not through its path:
// the file there may be another one by now.
func executableSum(of *process.Process) (sum []byte, err error) {
	file, err := of.Executable()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return nil, fmt.Errorf("reading the executable: %w", err)
	}
	return hash.Sum(nil), nil
}
