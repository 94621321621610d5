// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/keyhole-agent/keyhole/secret"
)

// Administrators is what a Decision names as its policy when the ID is one of
// the configured administrators. No policy has this name.
const Administrators = "administrators"

// Policy is a rule as the operator wrote it. The package documentation has the
// grammar of its patterns.
type Policy struct {
	Name        string       `yaml:"name"`        // as one segment of a path; unique
	SPIFFEID    string       `yaml:"spiffe_id"`   // pattern of those who get the permissions
	Path        string       `yaml:"path"`        // pattern of what they get them on
	Permissions []Permission `yaml:"permissions"` // at least one, none twice
}

// The fields of a Policy as files have them, in the order of their errors.
const (
	fieldName        = "name"
	fieldSPIFFEID    = "spiffe_id"
	fieldPath        = "path"
	fieldPermissions = "permissions"
)

// rule is a compiled Policy. Its patterns are normal.
type rule struct {
	policy  Policy
	id      idPattern
	path    pattern
	granted permissions
}

// ruleError is what is wrong with one field of a policy.
type ruleError struct {
	policy, field, value string
	err                  error
}

func (e *ruleError) Error() string {
	return fmt.Sprintf("%v policy %q: %s %s: %v", secret.ErrInvalid, e.policy, e.field, e.value, e.err)
}

func (e *ruleError) Unwrap() []error { return []error{secret.ErrInvalid, e.err} }

// compile checks a policy. The error is a *ruleError.
func compile(p Policy) (rule, error) {
	wrong := func(field, value string, err error) error {
		return &ruleError{policy: p.Name, field: field, value: value, err: err}
	}
	if err := checkName(p.Name); err != nil {
		return rule{}, wrong(fieldName, strconv.Quote(p.Name), err)
	}
	id, err := parseID(p.SPIFFEID)
	if err != nil {
		return rule{}, wrong(fieldSPIFFEID, strconv.Quote(p.SPIFFEID), err)
	}
	path, err := parsePath(p.Path)
	if err != nil {
		return rule{}, wrong(fieldPath, strconv.Quote(p.Path), err)
	}
	id.path, path = id.path.normal(), path.normal()
	if err := checkReach(path); err != nil {
		return rule{}, wrong(fieldPath, strconv.Quote(p.Path), err)
	}
	if err := resolve(id.path, path); err != nil {
		return rule{}, wrong(fieldPath, strconv.Quote(p.Path), err)
	}
	granted, err := grantedBy(path, p.Permissions)
	if err != nil {
		return rule{}, wrong(fieldPermissions, fmt.Sprintf("%v", p.Permissions), err)
	}
	p.Permissions = slices.Clone(p.Permissions)
	return rule{policy: p, id: id, path: path, granted: granted}, nil
}

func checkName(name string) error {
	if name == Administrators {
		return errors.New("the name is reserved for the administrators of the configuration")
	}
	return secret.CheckSegment(name)
}

// checkReach refuses path patterns that no request could ever match, and those
// that try to reach sys with a wildcard.
func checkReach(path pattern) error {
	switch {
	case path[0].kind == literal && path[0].text == reserved && !path.literal():
		return errors.New("below sys every segment is written literally; no wildcard or capture reaches a power")
	case !path.literal():
		return nil
	case path[0].text == reserved:
		_, err := grantedOnPower(path.String(), nil)
		return err
	}
	parsed, err := secret.ParsePath(path.String())
	if err != nil {
		return err
	}
	return parsed.CheckStorable()
}

func checkPermissions(listed []Permission) error {
	if len(listed) == 0 {
		return errors.New("there is none; without a permission the policy gives nothing")
	}
	for i, p := range listed {
		if !p.valid() {
			return fmt.Errorf("%s is none of %s", p, strings.Join(permissionNames[List:], ", "))
		}
		if slices.Contains(listed[:i], p) {
			return fmt.Errorf("%s is listed twice", p)
		}
	}
	return nil
}

// grantedBy returns what the permissions listed in a policy give on its path.
func grantedBy(path pattern, listed []Permission) (permissions, error) {
	if err := checkPermissions(listed); err != nil {
		return 0, err
	}
	if path[0].kind == literal && path[0].text == reserved {
		return grantedOnPower(path.String(), listed)
	}
	return grantedOnSecrets(listed)
}
