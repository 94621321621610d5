// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"fmt"
	"iter"
	"strings"
)

// Bounds of the path grammar.
const (
	MaxPathBytes    = 512 // of a whole path, separators included
	MaxSegments     = 32  // of a path
	MaxSegmentBytes = 253 // of one segment, and of a key
)

// Path names a secret or a folder: segments joined by "/", as in "db/creds".
// A non-zero Path is well formed. The zero Path is the root folder.
// Paths are comparable.
type Path struct{ text string }

// ParsePath accepts 1 to 32 segments of 1 to 253 bytes each, 512 bytes in all.
// A segment consists of "A–Z a–z 0–9 . _ - + = @ , ~", is not "." or "..", and
// does not begin with "..". Nothing is cleaned up: a leading, trailing or
// doubled slash is an error.
//
// The error is ErrInvalid and names the offending character and where it is.
func ParsePath(text string) (Path, error) {
	if text == "" {
		return Path{}, fmt.Errorf("%w path: it is empty", ErrInvalid)
	}
	if len(text) > MaxPathBytes {
		return Path{}, fmt.Errorf("%w path: %d bytes, at most %d are allowed", ErrInvalid, len(text), MaxPathBytes)
	}
	count := 0
	for segment := range strings.SplitSeq(text, "/") {
		if count++; count > MaxSegments {
			return Path{}, fmt.Errorf("%w path %q: more than %d segments", ErrInvalid, text, MaxSegments)
		}
		if err := checkSegment(segment); err != nil {
			return Path{}, fmt.Errorf("%w path %q: segment %d %w", ErrInvalid, text, count, err)
		}
	}
	return Path{text}, nil
}

// MustParsePath is ParsePath for constants; it panics on an error.
func MustParsePath(text string) Path {
	p, err := ParsePath(text)
	if err != nil {
		panic(err)
	}
	return p
}

// CheckSegment says what is wrong with one segment of a path or a key, or nil.
// The error is ErrInvalid.
func CheckSegment(segment string) error {
	if err := checkSegment(segment); err != nil {
		return fmt.Errorf("%w name %q: it %w", ErrInvalid, segment, err)
	}
	return nil
}

func checkSegment(s string) error {
	switch {
	case s == "":
		return errText("is empty")
	case len(s) > MaxSegmentBytes:
		return errText(fmt.Sprintf("has %d bytes, at most %d are allowed", len(s), MaxSegmentBytes))
	case s == ".":
		return errText(`is "."`)
	case strings.HasPrefix(s, ".."):
		return errText(`begins with "..", which is reserved for the filesystem`)
	}
	for i, r := range s {
		if !allowed(r) {
			return errText(fmt.Sprintf("has the character %q at byte %d; allowed are A-Z a-z 0-9 . _ - + = @ , ~", r, i))
		}
	}
	return nil
}

func allowed(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' ||
		strings.ContainsRune("._-+=@,~", r)
}

// String returns the path as it was parsed; "" for the root.
func (p Path) String() string { return p.text }

// IsRoot reports whether p is the zero Path, the root folder.
func (p Path) IsRoot() bool { return p.text == "" }

// Segments yields the segments in order.
func (p Path) Segments() iter.Seq[string] {
	if p.text == "" {
		return func(func(string) bool) {}
	}
	return strings.SplitSeq(p.text, "/")
}

// Base returns the last segment; "" for the root.
func (p Path) Base() string { return p.text[strings.LastIndexByte(p.text, '/')+1:] }

// Parent returns the folder that p is in; the root's parent is the root.
func (p Path) Parent() Path { return Path{p.text[:max(0, strings.LastIndexByte(p.text, '/'))]} }

// Child returns the path of name in the folder p, or ErrInvalid.
func (p Path) Child(name string) (Path, error) {
	if strings.Contains(name, "/") {
		return Path{}, CheckSegment(name)
	}
	if p.text == "" {
		return ParsePath(name)
	}
	return ParsePath(p.text + "/" + name)
}

// Contains reports whether p is a folder above other. The root is above all
// other paths; no path is above itself.
func (p Path) Contains(other Path) bool {
	if p.text == "" {
		return other.text != ""
	}
	return len(other.text) > len(p.text) && other.text[len(p.text)] == '/' && other.text[:len(p.text)] == p.text
}

// Reserved reports whether the path names an administrative power rather than
// a secret: "sys", and everything below it.
func (p Path) Reserved() bool {
	return p.text == "sys" || strings.HasPrefix(p.text, "sys/")
}

// CheckStorable returns ErrInvalid when no secret may have this path: the
// root, the reserved ones below "sys", and "purge", which is a REST route.
func (p Path) CheckStorable() error {
	switch {
	case p.IsRoot():
		return fmt.Errorf("%w path: it is empty", ErrInvalid)
	case p.Reserved():
		return fmt.Errorf("%w path %q: sys is reserved for administrative powers", ErrInvalid, p.text)
	case p.text == "purge":
		return fmt.Errorf("%w path %q: the name purge is reserved", ErrInvalid, p.text)
	}
	return nil
}

// Key is the name of one value in a secret, and of its file: "password".
// A non-zero Key is well formed. Keys are comparable.
type Key struct{ text string }

// ParseKey accepts what a path's segment may be. The error is ErrInvalid.
func ParseKey(text string) (Key, error) {
	if err := checkSegment(text); err != nil {
		return Key{}, fmt.Errorf("%w key %q: it %w", ErrInvalid, text, err)
	}
	return Key{text}, nil
}

// String returns the key as it was parsed.
func (k Key) String() string { return k.text }
