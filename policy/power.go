// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keyhole-agent/keyhole/secret"
)

// reserved is the first segment of the paths that name powers.
const reserved = "sys"

// cipherFolder is above the names of the keys to encrypt and decrypt with.
const cipherFolder = "sys/cipher/"

// powerNames are the paths on which super is a power.
var powerNames = [...]string{
	"sys/audit", "sys/backup", "sys/keys", "sys/policies", "sys/purge",
	"sys/sessions", "sys/status", "sys/views", "sys/workloads",
}

// onPower returns the permissions that there are on a path below sys: none when
// it names no power.
func onPower(path string) permissions {
	if name, found := strings.CutPrefix(path, cipherFolder); found && name != "" && !strings.Contains(name, "/") {
		return setOf(Execute, Super)
	}
	if slices.Contains(powerNames[:], path) {
		return setOf(Super)
	}
	return 0
}

// grantedOnPower returns what the permissions listed in a policy give on a
// literal path below sys, or why they make no sense there.
func grantedOnPower(path string, listed []Permission) (permissions, error) {
	there := onPower(path)
	if there == 0 {
		return 0, fmt.Errorf("there is no such power; known are %s, and %sNAME", strings.Join(powerNames[:], ", "), cipherFolder)
	}
	granted := permissions(0)
	for _, p := range listed {
		switch {
		case !there.has(p) && p == Execute:
			return 0, fmt.Errorf("execute is for %sNAME; on %s, super is the power", cipherFolder, path)
		case !there.has(p):
			return 0, fmt.Errorf("below sys there are no secrets to %s; on %s, the permission is %s", p, path, there)
		case p == Super:
			granted |= there
		default:
			granted |= setOf(p)
		}
	}
	return granted, nil
}

// grantedOnSecrets returns what the permissions listed in a policy give on an
// ordinary path, or why they make no sense there.
func grantedOnSecrets(listed []Permission) (permissions, error) {
	granted := permissions(0)
	for _, p := range listed {
		if p == Execute {
			return 0, fmt.Errorf("execute is to encrypt and decrypt, and only for a path %sNAME", cipherFolder)
		}
		granted |= p.onSecrets()
	}
	return granted, nil
}

// grantedToAdministrators returns what they hold on path, whatever the policies say.
func grantedToAdministrators(path secret.Path) permissions {
	switch {
	case path.IsRoot():
		return 0
	case path.Reserved():
		return onPower(path.String())
	}
	return Super.onSecrets()
}
