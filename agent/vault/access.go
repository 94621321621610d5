// SPDX-License-Identifier: Apache-2.0

package vault

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyhole-agent/keyhole/agent/audit"
	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// The powers that this package's operations need.
var (
	powerPurge    = secret.MustParsePath("sys/purge")
	powerPolicies = secret.MustParsePath("sys/policies")
)

// may decides whether caller is allowed what it wants, and audits a refusal.
// The event is the beginning of the record of an allowed operation.
func (v *Vault) may(caller identity.Caller, operation string, want policy.Permission, path secret.Path) (audit.Event, error) {
	decision := v.rules().Allows(caller.IDs, want, path)
	event := v.event(caller, operation, path, decision)
	if decision.Allowed {
		return event, nil
	}
	return event, v.refuse(event, fmt.Errorf("%w: %s may not %s %s", secret.ErrDenied, nameOf(caller), want, path))
}

func (v *Vault) event(caller identity.Caller, operation string, path secret.Path, decision policy.Decision) audit.Event {
	e := audit.Event{
		Time: v.now(), Caller: caller, Operation: operation, Path: path.String(),
		Decision: audit.Denied, Policy: decision.Policy, Development: v.development,
	}
	if decision.Allowed {
		e.Decision, e.DecidingID = audit.Allowed, decision.ID
	}
	return e
}

// refuse audits a denial and returns the reason. A denial that cannot be
// audited is still one.
func (v *Vault) refuse(event audit.Event, reason error) error {
	event.Decision, event.Reason = audit.Denied, reason.Error()
	if err := v.log.Deny(event); err != nil {
		return fmt.Errorf("%w (and the audit log does not take the record: %w)", reason, err)
	}
	return reason
}

// finish audits a read that was allowed, with how it went. Its error is the
// caller's answer.
func (v *Vault) finish(event audit.Event, err error) error {
	if err != nil {
		event.Decision, event.Reason = audit.Failed, err.Error()
	}
	if logErr := v.log.Append(event); logErr != nil {
		return fmt.Errorf("the audit log does not take the record of this request: %w", errors.Join(logErr, err))
	}
	return err
}

// logAll writes the events of a group in one piece and makes them durable.
func (v *Vault) logAll(ctx context.Context, events []audit.Event) (audit.Head, error) {
	if len(events) > 0 {
		if err := v.log.AppendAll(events); err != nil {
			return audit.Head{}, fmt.Errorf("the audit log does not take the record of this request: %w", err)
		}
	}
	head, err := v.log.Sync(ctx)
	if err != nil {
		return audit.Head{}, err
	}
	return head, nil
}

// Authorize decides about an operation that is done elsewhere in the agent, and
// audits the decision. Its error is secret.ErrDenied when it may not be done.
func (v *Vault) Authorize(_ context.Context, caller identity.Caller, operation string, want policy.Permission, path secret.Path) error {
	event, err := v.may(caller, operation, want, path)
	if err != nil {
		return err
	}
	return v.finish(event, nil)
}

// Refuse audits a request that ended before its caller was known.
func (v *Vault) Refuse(_ context.Context, unknown identity.Caller, operation string, reason error) error {
	event := v.event(unknown, operation, secret.Path{}, policy.Decision{})
	event.Reason = reason.Error()
	return v.log.Deny(event)
}

func nameOf(caller identity.Caller) string {
	switch len(caller.IDs) {
	case 0:
		return "a caller without a SPIFFE ID"
	case 1:
		return caller.IDs[0].String()
	}
	return fmt.Sprintf("%s (and %d other IDs)", caller.IDs[0], len(caller.IDs)-1)
}
