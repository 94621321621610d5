// SPDX-License-Identifier: Apache-2.0

package vault

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/agent/audit"
	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// policies is one state of the rules. It is replaced as a whole.
type policies struct {
	rules  *policy.Set
	byName map[string]policy.Policy
}

// storedPolicy is the persisted form of a policy, as JSON, sealed.
type storedPolicy struct {
	Name        string   `json:"name"`
	SPIFFEID    string   `json:"spiffe_id"`
	Path        string   `json:"path"`
	Permissions []string `json:"permissions"`
}

func (v *Vault) rules() *policy.Set { return v.policies.Load().rules }

func (v *Vault) policyKey(name string) backend.Key {
	id := v.keys.LocateName("policy", name)
	return backend.Key{Table: backend.Policies, ID: string(id[:])}
}

func (v *Vault) loadPolicies(ctx context.Context) error {
	byName := map[string]policy.Policy{}
	for r, err := range v.scan(ctx, backend.Query{Table: backend.Policies}) {
		if err != nil {
			return fmt.Errorf("reading the policies: %w", err)
		}
		p, err := v.openPolicy(r)
		if err != nil {
			return fmt.Errorf("a stored policy is refused, and deciding without it would be a guess; restore the store from a backup: %w", err)
		}
		byName[p.Name] = p
	}
	return v.compile(byName)
}

// compile makes the given policies the ones that decide.
func (v *Vault) compile(byName map[string]policy.Policy) error {
	rules, err := policy.Compile(slices.Collect(maps.Values(byName)), v.administrators)
	if err != nil {
		return err
	}
	v.policies.Store(&policies{rules: rules, byName: byName})
	return nil
}

func (v *Vault) sealPolicy(p policy.Policy) (backend.Record, error) {
	stored := storedPolicy{Name: p.Name, SPIFFEID: p.SPIFFEID, Path: p.Path}
	for _, permission := range p.Permissions {
		stored.Permissions = append(stored.Permissions, permission.String())
	}
	plain, err := json.Marshal(stored)
	if err != nil {
		return backend.Record{}, fmt.Errorf("encoding policy %q: %w", p.Name, err)
	}
	record := backend.Record{Key: v.policyKey(p.Name)}
	binding := bound(seal.KindPolicy, record.Key, secret.ID{})
	key, wrapped, err := v.keys.NewDataKey(binding)
	if err != nil {
		return backend.Record{}, err
	}
	defer key.Wipe()
	sealed, err := key.Seal(binding, seal.FieldHead, plain)
	if err != nil {
		return backend.Record{}, err
	}
	record.Body = append(append([]byte{bodyFormat}, wrapped...), sealed...)
	record.Hints.Term = v.keys.Term()
	return record, nil
}

func (v *Vault) openPolicy(r backend.Record) (policy.Policy, error) {
	if len(r.Body) < 1+seal.WrappedSize || r.Body[0] != bodyFormat {
		return policy.Policy{}, fmt.Errorf("reading a policy: %w", secret.ErrTampered)
	}
	binding := bound(seal.KindPolicy, r.Key, secret.ID{})
	key, err := v.keys.OpenDataKey(binding, r.Body[1:1+seal.WrappedSize])
	if err != nil {
		return policy.Policy{}, fmt.Errorf("opening the key of a policy: %w", err)
	}
	defer key.Wipe()
	plain, err := key.Open(binding, seal.FieldHead, r.Body[1+seal.WrappedSize:])
	if err != nil {
		return policy.Policy{}, fmt.Errorf("opening a policy: %w", err)
	}
	var stored storedPolicy
	if err := json.Unmarshal(plain, &stored); err != nil {
		return policy.Policy{}, fmt.Errorf("decoding a policy: %w", err)
	}
	p := policy.Policy{Name: stored.Name, SPIFFEID: stored.SPIFFEID, Path: stored.Path}
	for _, text := range stored.Permissions {
		permission, err := policy.ParsePermission(text)
		if err != nil {
			return policy.Policy{}, fmt.Errorf("decoding policy %q: %w", p.Name, err)
		}
		p.Permissions = append(p.Permissions, permission)
	}
	return p, nil
}

// ApplyPolicies creates the given policies or replaces those of the same name,
// all or none. Errors: ErrDenied, ErrInvalid, ErrUnavailable.
func (v *Vault) ApplyPolicies(ctx context.Context, caller identity.Caller, apply []policy.Policy) error {
	event, err := v.may(caller, "policy-apply", policy.Super, powerPolicies)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(apply))
	for _, p := range apply {
		names = append(names, p.Name)
	}
	event.Reason = fmt.Sprintf("apply %q", names)
	return v.changePolicies(ctx, event, func(byName map[string]policy.Policy) ([]backend.Op, error) {
		var ops []backend.Op
		for _, p := range apply {
			byName[p.Name] = p
			record, err := v.sealPolicy(p)
			if err != nil {
				return nil, err
			}
			ops = append(ops, backend.Op{Record: record})
		}
		return ops, nil
	})
}

// DeletePolicy removes one policy. Errors: ErrDenied, ErrNotFound, ErrUnavailable.
func (v *Vault) DeletePolicy(ctx context.Context, caller identity.Caller, name string) error {
	event, err := v.may(caller, "policy-delete", policy.Super, powerPolicies)
	if err != nil {
		return err
	}
	event.Reason = fmt.Sprintf("delete %q", name)
	return v.changePolicies(ctx, event, func(byName map[string]policy.Policy) ([]backend.Op, error) {
		if _, ok := byName[name]; !ok {
			return nil, fmt.Errorf("policy %q: %w", name, secret.ErrNotFound)
		}
		delete(byName, name)
		return []backend.Op{{Record: backend.Record{Key: v.policyKey(name)}, Delete: true}}, nil
	})
}

// changePolicies edits a copy of the policies, and makes it the one that
// decides when it compiles and is stored. Nothing decides by rules that are not
// durable.
func (v *Vault) changePolicies(ctx context.Context, event audit.Event, edit func(map[string]policy.Policy) ([]backend.Op, error)) error {
	v.policyMu.Lock()
	defer v.policyMu.Unlock()
	byName := maps.Clone(v.policies.Load().byName)
	ops, err := edit(byName)
	if err != nil {
		return v.finish(event, err)
	}
	rules, err := policy.Compile(slices.Collect(maps.Values(byName)), v.administrators)
	if err != nil {
		return v.finish(event, err)
	}
	event.Phase = audit.Intent
	_, _ = rand.Read(event.Batch[:]) // never fails
	ch := &change{
		batch: backend.Batch{ID: event.Batch, Ops: ops}, intent: &event, all: true,
		applied: func() { v.policies.Store(&policies{rules: rules, byName: byName}) },
	}
	return v.committer.submit(ctx, ch)
}

// Policies returns all policies, by name. It needs super on sys/policies.
func (v *Vault) Policies(_ context.Context, caller identity.Caller) ([]policy.Policy, error) {
	event, err := v.may(caller, "policy-list", policy.Super, powerPolicies)
	if err != nil {
		return nil, err
	}
	byName := v.policies.Load().byName
	all := make([]policy.Policy, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		all = append(all, byName[name])
	}
	return all, v.finish(event, nil)
}

// Explain tells which rule decides for an identity, or why none does. It needs
// super on sys/policies.
func (v *Vault) Explain(_ context.Context, caller identity.Caller, id spiffeid.ID, want policy.Permission, path secret.Path) (policy.Explanation, error) {
	event, err := v.may(caller, "policy-explain", policy.Super, powerPolicies)
	if err != nil {
		return policy.Explanation{}, err
	}
	return v.rules().Explain(id, want, path), v.finish(event, nil)
}

// ExplainSelf tells the caller what decides about itself, for each of its IDs.
func (v *Vault) ExplainSelf(_ context.Context, caller identity.Caller, want policy.Permission, path secret.Path) ([]policy.Explanation, error) {
	event := v.event(caller, "explain", path, policy.Decision{Allowed: true})
	if len(caller.IDs) == 0 {
		return nil, v.refuse(event, fmt.Errorf("%w: %s has nothing to explain", secret.ErrDenied, nameOf(caller)))
	}
	var all []policy.Explanation
	for _, id := range caller.IDs {
		all = append(all, v.rules().ExplainSelf(id, want, path))
	}
	return all, v.finish(event, nil)
}

// Reload replaces the administrators, and reads the policies from the store
// again. On an error everything stays as it was.
func (v *Vault) Reload(ctx context.Context, administrators []spiffeid.ID) error {
	v.policyMu.Lock()
	defer v.policyMu.Unlock()
	before := v.administrators
	v.administrators = administrators
	if err := v.loadPolicies(ctx); err != nil {
		v.administrators = before
		return err
	}
	v.feeds.publish(secret.Changes{All: true})
	return nil
}
