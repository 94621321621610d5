// SPDX-License-Identifier: Apache-2.0

// Package policy decides who may do what to which path. It does no I/O and
// reads no clock: the same Set answers the same question always the same.
//
// A Policy gives permissions on the paths of one pattern to the SPIFFE IDs of
// another. Policies only ever allow; what none allows is denied.
//
// # Patterns
//
// Patterns are matched on whole segments, never on prefixes of text:
//
//	db/creds     these two segments
//	*            exactly one segment
//	**           any number of segments, none included, so db/** matches db too
//	{name}       in a SPIFFE ID: one segment, which the path may use as {name}
//
// The trust domain of a SPIFFE ID is always literal, and its path is never
// empty. A SPIFFE ID with captures has at most one "**", so that each name
// stands for exactly one segment. An ID has at most 32 segments to match
// anything. A captured segment that is not a well formed path segment equals
// none, so it matches nothing.
//
// A path pattern whose first segment is sys names a power and is literal. No
// wildcard and no capture ever reaches sys, whatever it stands for.
//
// # Guarantees and limits
//
// A Set is immutable and safe for concurrent use. A decision allocates nothing
// and visits each node of a trie at most once for each ID, however many "**"
// there are. It costs about as much as the IDs and the path have segments,
// unless many patterns with wildcards match the same prefix.
//
// Whether the IDs were proven, and whether the path exists, is for the caller
// to know. So is what to tell those who are denied.
package policy
