// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"encoding/hex"
	"time"
)

// Version is a secret's version number: from 1 up, never reused. 0 stands for
// "the current one" in a request and for "none is live" in an answer.
type Version uint64

// ID is a secret's random identity. It is made when the secret is created and
// never changes; a secret that is purged and created again has another one.
type ID [16]byte

// String returns the ID in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// State is what became of a version.
type State uint8

// The states of a version.
const (
	Live      State = iota // served
	Deleted                // not served; undelete brings it back
	Destroyed              // its data key and ciphertext are gone
)

// String returns the state's name in the API: "live", "deleted" or "destroyed".
func (s State) String() string {
	switch s {
	case Live:
		return "live"
	case Deleted:
		return "deleted"
	case Destroyed:
		return "destroyed"
	}
	return "unknown"
}

// Info describes a secret without its values.
type Info struct {
	Path     Path
	ID       ID
	Revision uint64    // of the stored record; grows with every change
	Created  time.Time // of the first version, UTC
	Updated  time.Time // of the last change, UTC
	Current  Version   // the highest live version, 0 when the secret is empty
	Oldest   Version   // the lowest version that is still kept
	Latest   Version   // the highest version ever written
	EmptyAt  time.Time // when the secret became empty; zero when it is not
	Keys     []KeySize // of the current version, in byte order; nil when empty
	Versions []VersionInfo
}

// VersionInfo describes one version, without its values.
type VersionInfo struct {
	Version   Version
	State     State
	Created   time.Time // UTC
	DeletedAt time.Time // when it was deleted; zero when it is live
	Size      int       // of its values in bytes
	Writer    string    // the SPIFFE ID that wrote it
}

// Entry is one name in a listing.
type Entry struct {
	Path   Path
	Folder bool // a folder has no version of its own
	Empty  bool // a secret with no live version
}

// Secret is one version of a secret, with its values.
type Secret struct {
	Info    Info
	Version VersionInfo
	Values  Values // the receiver wipes them when they are sent
}

// Changes tells a follower what to look at again. It never says what became of
// it: the follower asks, as the caller it serves.
type Changes struct {
	Paths []Path // secrets that were written, deleted or purged
	All   bool   // anything may have changed: policies did, or the follower fell behind
}

// File names one value of one version of one secret: what a file in the mount
// stands for. The ID tells a purged and recreated secret from the one before.
type File struct {
	Path    Path
	ID      ID
	Version Version
	Key     Key
}

// Selection says which versions an operation is about: the current one when it
// is zero.
type Selection struct {
	Versions []Version
	All      bool
}

// Purge says which empty secrets a purge is about.
type Purge struct {
	Prefix    Path          // only below this folder, or this secret; root for all
	OlderThan time.Duration // empty for at least this long; 0 for all
	DryRun    bool          // report, and destroy nothing
}

// PurgeProgress is one step of a purge.
type PurgeProgress struct {
	Found int    // how many secrets the purge is about
	Paths []Path // destroyed in this step; found in it when it is a dry run
}
