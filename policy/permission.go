// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"

	"github.com/keyhole-agent/keyhole/secret"
)

// Permission is what a policy gives on a path. The zero Permission is none of
// them, and nobody has it.
type Permission uint8

// The permissions.
const (
	List    Permission = iota + 1 // the name in folders, the description, the history
	Read                          // the values; implies List
	Write                         // new versions, and deleting and bringing back old ones
	Execute                       // encrypt and decrypt with the key at sys/cipher/NAME
	Super                         // all of the above; at a path below sys, that power
)

// permissionNames has the text of each permission at its number.
var permissionNames = [...]string{"", "list", "read", "write", "execute", "super"}

func (p Permission) valid() bool { return p >= List && p <= Super }

// String returns the permission as policies have it: "read".
func (p Permission) String() string {
	if !p.valid() {
		return fmt.Sprintf("permission %d", uint8(p))
	}
	return permissionNames[p]
}

// ParsePermission is the inverse of String, for valid permissions. The error is
// secret.ErrInvalid.
func ParsePermission(text string) (Permission, error) {
	for p := List; p <= Super; p++ {
		if permissionNames[p] == text {
			return p, nil
		}
	}
	return 0, fmt.Errorf("%w permission %q: it is one of %s", secret.ErrInvalid, text, strings.Join(permissionNames[List:], ", "))
}

// MarshalText returns what String does, or secret.ErrInvalid.
func (p Permission) MarshalText() ([]byte, error) {
	if !p.valid() {
		return nil, fmt.Errorf("%w permission %d", secret.ErrInvalid, uint8(p))
	}
	return []byte(permissionNames[p]), nil
}

// UnmarshalText accepts what ParsePermission does.
func (p *Permission) UnmarshalText(text []byte) error {
	parsed, err := ParsePermission(string(text))
	if err != nil {
		return err
	}
	*p = parsed
	return nil
}

// permissions is a set of them, a bit for each.
type permissions uint8

func setOf(members ...Permission) (set permissions) {
	for _, p := range members {
		set |= 1 << p
	}
	return set
}

func (set permissions) has(p Permission) bool { return p.valid() && set&(1<<p) != 0 }

func (set permissions) String() string {
	var names []string
	for p := List; p <= Super; p++ {
		if set.has(p) {
			names = append(names, p.String())
		}
	}
	return strings.Join(names, ", ")
}

// onSecrets returns what p stands for on an ordinary path.
func (p Permission) onSecrets() permissions {
	switch p {
	case Read:
		return setOf(List, Read)
	case Super:
		return setOf(List, Read, Write, Execute, Super)
	default:
		return setOf(p)
	}
}
