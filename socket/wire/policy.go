// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"

	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// FromPermission is the inverse of ToPermission.
func FromPermission(p policy.Permission) pb.Permission {
	switch p {
	case policy.Read:
		return pb.Permission_PERMISSION_READ
	case policy.List:
		return pb.Permission_PERMISSION_LIST
	case policy.Write:
		return pb.Permission_PERMISSION_WRITE
	case policy.Execute:
		return pb.Permission_PERMISSION_EXECUTE
	case policy.Super:
		return pb.Permission_PERMISSION_SUPER
	}
	return pb.Permission_PERMISSION_UNSPECIFIED
}

// ToPermission returns secret.ErrInvalid when it is not said, or unknown here.
func ToPermission(from pb.Permission) (policy.Permission, error) {
	switch from {
	case pb.Permission_PERMISSION_READ:
		return policy.Read, nil
	case pb.Permission_PERMISSION_LIST:
		return policy.List, nil
	case pb.Permission_PERMISSION_WRITE:
		return policy.Write, nil
	case pb.Permission_PERMISSION_EXECUTE:
		return policy.Execute, nil
	case pb.Permission_PERMISSION_SUPER:
		return policy.Super, nil
	}
	return 0, fmt.Errorf("%w permission %v", secret.ErrInvalid, from)
}

// FromPolicy is the inverse of ToPolicy.
func FromPolicy(p policy.Policy) *pb.Policy {
	to := &pb.Policy{Name: p.Name, SpiffeId: p.SPIFFEID, Path: p.Path}
	for _, permission := range p.Permissions {
		to.Permissions = append(to.Permissions, FromPermission(permission))
	}
	return to
}

// ToPolicy returns secret.ErrInvalid for an unknown permission. Names and
// patterns are for package policy to check.
func ToPolicy(from *pb.Policy) (policy.Policy, error) {
	p := policy.Policy{Name: from.GetName(), SPIFFEID: from.GetSpiffeId(), Path: from.GetPath()}
	for _, permission := range from.GetPermissions() {
		parsed, err := ToPermission(permission)
		if err != nil {
			return policy.Policy{}, fmt.Errorf("policy %q: %w", p.Name, err)
		}
		p.Permissions = append(p.Permissions, parsed)
	}
	return p, nil
}

// FromExplanation is the inverse of ToExplanation.
func FromExplanation(e policy.Explanation) *pb.Explanation {
	to := &pb.Explanation{
		SpiffeId:   e.SPIFFEID.String(),
		Permission: FromPermission(e.Permission),
		Path:       e.Path.String(),
		Decision: &pb.Decision{
			Allowed:  e.Decision.Allowed,
			Policy:   e.Decision.Policy,
			SpiffeId: e.Decision.ID.String(),
		},
		Omitted: int64(e.Omitted),
	}
	for _, c := range e.Considered {
		to.Considered = append(to.Considered, &pb.Consideration{Policy: c.Policy, Reason: c.Reason})
	}
	return to
}

// ToExplanation returns secret.ErrInvalid when an ID, the path or the
// permission is malformed.
func ToExplanation(from *pb.Explanation) (policy.Explanation, error) {
	id, err := toID(from.GetSpiffeId())
	if err != nil {
		return policy.Explanation{}, err
	}
	allowed, err := toID(from.GetDecision().GetSpiffeId())
	if err != nil {
		return policy.Explanation{}, err
	}
	permission, err := ToPermission(from.GetPermission())
	if err != nil {
		return policy.Explanation{}, err
	}
	path, err := FolderPath(from.GetPath())
	if err != nil {
		return policy.Explanation{}, err
	}
	decision := from.GetDecision()
	e := policy.Explanation{
		SPIFFEID:   id,
		Permission: permission,
		Path:       path,
		Decision:   policy.Decision{Allowed: decision.GetAllowed(), Policy: decision.GetPolicy(), ID: allowed},
		Omitted:    int(from.GetOmitted()),
	}
	for _, c := range from.GetConsidered() {
		e.Considered = append(e.Considered, policy.Considered{Policy: c.GetPolicy(), Reason: c.GetReason()})
	}
	return e, nil
}

// ParseID is spiffeid.FromString with secret.ErrInvalid as its error.
func ParseID(text string) (spiffeid.ID, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w SPIFFE ID %q: %w", secret.ErrInvalid, text, err)
	}
	return id, nil
}

// toID has the zero ID for "".
func toID(text string) (spiffeid.ID, error) {
	if text == "" {
		return spiffeid.ID{}, nil
	}
	return ParseID(text)
}
