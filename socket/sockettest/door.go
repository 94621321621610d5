// SPDX-License-Identifier: Apache-2.0

package sockettest

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/socket"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// Call is what a Door was asked.
type Call struct {
	Operation string
	Caller    identity.Caller
	Refused   error // why, when it was refused before the caller was known
}

// Door stands in for the vault: it allows everything, keeps one version of each
// secret, and remembers who asked. The zero Door is ready to use.
type Door struct {
	// Fail, when it is set, is asked first at each call; its error is the answer.
	Fail func(ctx context.Context, operation string) error

	// Forgetful keeps no calls, for benchmarks.
	Forgetful bool

	mu       sync.Mutex
	secrets  map[secret.Path]stored
	policies []policy.Policy
	calls    []Call
}

type stored struct {
	info   secret.Info
	values map[string][]byte
}

var (
	_ socket.Secrets        = (*Door)(nil)
	_ socket.Administration = (*Door)(nil)
	_ socket.Statuses       = (*Door)(nil)
	_ socket.Refusals       = (*Door)(nil)
)

// Calls returns what was asked until now.
func (d *Door) Calls() []Call {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

func (d *Door) note(ctx context.Context, operation string, caller identity.Caller) error {
	if !d.Forgetful {
		d.mu.Lock()
		d.calls = append(d.calls, Call{Operation: operation, Caller: caller})
		d.mu.Unlock()
	}
	if d.Fail != nil {
		return d.Fail(ctx, operation)
	}
	return nil
}

// Get returns the only version that there is.
func (d *Door) Get(ctx context.Context, caller identity.Caller, path secret.Path, version secret.Version) (secret.Secret, error) {
	if err := d.note(ctx, "get", caller); err != nil {
		return secret.Secret{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	found, ok := d.secrets[path]
	if !ok || found.info.Current == 0 || version != 0 && version != found.info.Current {
		return secret.Secret{}, fmt.Errorf("%s: %w", path, secret.ErrNotFound)
	}
	values, err := secret.NewValues(found.values)
	return secret.Secret{Info: found.info, Version: found.info.Versions[len(found.info.Versions)-1], Values: values}, err
}

// List treats everything as recursive.
func (d *Door) List(ctx context.Context, caller identity.Caller, prefix, after secret.Path, limit int, _ bool) ([]secret.Entry, bool, error) {
	if err := d.note(ctx, "list", caller); err != nil {
		return nil, false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var entries []secret.Entry
	for path, s := range d.secrets {
		if prefix.Contains(path) && path.String() > after.String() {
			entries = append(entries, secret.Entry{Path: path, Empty: s.info.Current == 0})
		}
	}
	slices.SortFunc(entries, func(a, b secret.Entry) int { return slices.Compare([]byte(a.Path.String()), []byte(b.Path.String())) })
	if len(entries) > limit {
		return entries[:limit], true, nil
	}
	return entries, false, nil
}

// Describe returns what Put left.
func (d *Door) Describe(ctx context.Context, caller identity.Caller, path secret.Path) (secret.Info, error) {
	if err := d.note(ctx, "describe", caller); err != nil {
		return secret.Info{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	found, ok := d.secrets[path]
	if !ok {
		return secret.Info{}, fmt.Errorf("%s: %w", path, secret.ErrNotFound)
	}
	return found.info, nil
}

// Put replaces the values.
func (d *Door) Put(ctx context.Context, caller identity.Caller, path secret.Path, values secret.Values) (secret.Info, error) {
	if err := d.note(ctx, "put", caller); err != nil {
		return secret.Info{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := stored{info: d.secrets[path].info, values: map[string][]byte{}}
	size := 0
	for key, value := range values.All() {
		s.values[key.String()] = slices.Clone(value)
		size += len(value)
	}
	s.info.Path, s.info.ID = path, secret.ID{15: 1}
	s.info.Latest++
	s.info.Revision++
	s.info.Current, s.info.Oldest = s.info.Latest, 1
	s.info.Keys = values.Sizes()
	s.info.Versions = append(slices.Clone(s.info.Versions), secret.VersionInfo{
		Version: s.info.Latest, Size: size, Writer: caller.IDs[0].String(),
	})
	if d.secrets == nil {
		d.secrets = map[secret.Path]stored{}
	}
	d.secrets[path] = s
	return s.info, nil
}

// Delete empties the secret, whatever is selected.
func (d *Door) Delete(ctx context.Context, caller identity.Caller, path secret.Path, _ secret.Selection) (secret.Info, error) {
	if err := d.note(ctx, "delete", caller); err != nil {
		return secret.Info{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s, ok := d.secrets[path]
	if !ok {
		return secret.Info{}, fmt.Errorf("%s: %w", path, secret.ErrNotFound)
	}
	s.info.Current, s.info.Keys = 0, nil
	d.secrets[path] = s
	return s.info, nil
}

// ExplainSelf allows.
func (d *Door) ExplainSelf(ctx context.Context, caller identity.Caller, want policy.Permission, path secret.Path) ([]policy.Explanation, error) {
	if err := d.note(ctx, "explain", caller); err != nil {
		return nil, err
	}
	var explanations []policy.Explanation
	for _, id := range caller.IDs {
		explanations = append(explanations, explain(id, want, path))
	}
	return explanations, nil
}

// Purge removes what was deleted, two at a time.
func (d *Door) Purge(ctx context.Context, caller identity.Caller, which secret.Purge, report func(secret.PurgeProgress) error) error {
	if err := d.note(ctx, "purge", caller); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var found []secret.Path
	for path, s := range d.secrets {
		if s.info.Current == 0 && (which.Prefix == path || which.Prefix.Contains(path)) {
			found = append(found, path)
		}
	}
	if err := report(secret.PurgeProgress{Found: len(found)}); err != nil {
		return err
	}
	for step := range slices.Chunk(found, 2) {
		for _, path := range step {
			if !which.DryRun {
				delete(d.secrets, path)
			}
		}
		if err := report(secret.PurgeProgress{Found: len(found), Paths: step}); err != nil {
			return err
		}
	}
	return nil
}

// ApplyPolicies keeps them.
func (d *Door) ApplyPolicies(ctx context.Context, caller identity.Caller, policies []policy.Policy) error {
	if err := d.note(ctx, "policy-apply", caller); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.policies = append(d.policies, policies...)
	return nil
}

// Policies returns what was applied.
func (d *Door) Policies(ctx context.Context, caller identity.Caller) ([]policy.Policy, error) {
	if err := d.note(ctx, "policy-list", caller); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.policies), nil
}

// DeletePolicy forgets one.
func (d *Door) DeletePolicy(ctx context.Context, caller identity.Caller, name string) error {
	if err := d.note(ctx, "policy-delete", caller); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	before := len(d.policies)
	d.policies = slices.DeleteFunc(d.policies, func(p policy.Policy) bool { return p.Name == name })
	if len(d.policies) == before {
		return fmt.Errorf("policy %q: %w", name, secret.ErrNotFound)
	}
	return nil
}

// Explain allows.
func (d *Door) Explain(ctx context.Context, caller identity.Caller, id spiffeid.ID, want policy.Permission, path secret.Path) (policy.Explanation, error) {
	return explain(id, want, path), d.note(ctx, "policy-explain", caller)
}

func explain(id spiffeid.ID, want policy.Permission, path secret.Path) policy.Explanation {
	return policy.Explanation{
		SPIFFEID: id, Permission: want, Path: path,
		Decision:   policy.Decision{Allowed: true, Policy: "all", ID: id},
		Considered: []policy.Considered{{Policy: "all", Reason: "allows everything"}},
		Omitted:    3,
	}
}

// Status is fixed.
func (d *Door) Status(ctx context.Context, caller identity.Caller) (socket.Status, error) {
	return socket.Status{
		Version: "1.2.3", PID: 42, SPIFFEID: "spiffe://dev.keyhole.test/keyhole/agent", Development: true,
		Components: []socket.Component{{Name: "store", Healthy: true, Message: "in memory"}},
	}, d.note(ctx, "status", caller)
}

// VerifyAudit is fixed.
func (d *Door) VerifyAudit(ctx context.Context, caller identity.Caller) (socket.AuditReport, error) {
	return socket.AuditReport{Segments: 2, Records: 7, Problems: []string{"record 3 changed"}, Omitted: 1}, d.note(ctx, "audit-verify", caller)
}

// Refuse remembers the refusal.
func (d *Door) Refuse(_ context.Context, unknown identity.Caller, operation string, reason error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, Call{Operation: operation, Caller: unknown, Refused: reason})
	return nil
}
