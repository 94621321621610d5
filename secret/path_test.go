// SPDX-License-Identifier: Apache-2.0

package secret_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/secret"
)

const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-+=@,~"

// Paths at the bounds of the grammar.
var (
	longSegment = strings.Repeat("s", secret.MaxSegmentBytes)
	deepPath    = strings.Repeat("d/", secret.MaxSegments-1) + "d"
	longPath    = longSegment + "/" + longSegment + "/abcd"
)

func TestPathsOfTheGrammarAreAcceptedAsTheyAre(t *testing.T) {
	if len(longPath) != secret.MaxPathBytes {
		t.Fatalf("the long path has %d bytes", len(longPath))
	}
	for _, text := range []string{
		"a", "db/creds", allowed, allowed + "/" + allowed, ".a", "a..", "a..b", ".a.", "-", "~", "=", "@",
		"A/a", "sys", "sys/purge", "purge", longSegment, deepPath, longPath,
	} {
		p, err := secret.ParsePath(text)
		if err != nil || p.String() != text || p.IsRoot() {
			t.Errorf("ParsePath(%q) = %q, %v", text, p, err)
		}
		if got := strings.Join(slices.Collect(p.Segments()), "/"); got != text {
			t.Errorf("the segments of %q are those of %q", text, got)
		}
	}
}

func TestPathsOutsideTheGrammarAreRefusedWithTheReason(t *testing.T) {
	for _, c := range []struct{ text, reason string }{
		{"", "it is empty"},
		{"/", "segment 1 is empty"},
		{"/a", "segment 1 is empty"},
		{"a/", "segment 2 is empty"},
		{"a//b", "segment 2 is empty"},
		{".", `segment 1 is "."`},
		{"a/./b", `segment 2 is "."`},
		{"..", `segment 1 begins with ".."`},
		{"a/..", `segment 2 begins with ".."`},
		{"a/../b", `segment 2 begins with ".."`},
		{"..data", `segment 1 begins with ".."`},
		{"...", `segment 1 begins with ".."`},
		{longSegment + "s", "segment 1 has 254 bytes, at most 253"},
		{deepPath + "/d", "more than 32 segments"},
		{longPath + "e", "513 bytes, at most 512"},
		{" a", "' ' at byte 0"},
		{"a ", "' ' at byte 1"},
		{"a\n", `'\n' at byte 1`},
		{"a\x00", `'\x00' at byte 1`},
		{"x/a%2fb", "segment 2 has the character '%' at byte 1"},
		{`a\b`, `'\\' at byte 1`},
		{"a:b", "':' at byte 1"},
		{"a*", "'*' at byte 1"},
		{"{a}", "'{' at byte 0"},
		{"käse", "'ä' at byte 1"},
		{"a\u200bb", `'\u200b' at byte 1`},
		{"ａ", "'ａ' at byte 0"},
		{"a\xff", "at byte 1"},
	} {
		p, err := secret.ParsePath(c.text)
		if !errors.Is(err, secret.ErrInvalid) || !p.IsRoot() || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("ParsePath(%q) = %q, %v\nlacks %q", c.text, p, err, c.reason)
		}
	}
}

func TestEveryByteIsEitherAllowedOrNamed(t *testing.T) {
	for b := range 128 {
		text := "x" + string(rune(b)) + "x"
		if b == '/' {
			continue // separates
		}
		_, pathErr := secret.ParsePath(text)
		_, keyErr := secret.ParseKey(text)
		for _, err := range []error{pathErr, keyErr, secret.CheckSegment(text)} {
			if strings.ContainsRune(allowed, rune(b)) != (err == nil) {
				t.Errorf("byte %#x: %v", b, err)
			}
			if err != nil && (!errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), "at byte 1")) {
				t.Errorf("byte %#x: %v", b, err)
			}
		}
	}
}

func TestMustParsePathPanicsOnAnError(t *testing.T) {
	defer func() {
		if err, ok := recover().(error); !ok || !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("it panicked with %v", err)
		}
	}()
	secret.MustParsePath("a//b")
}

func TestKeysFollowTheGrammarOfASegment(t *testing.T) {
	for _, text := range []string{"password", allowed, longSegment, ".hidden", "tls.crt", "purge", "sys"} {
		if k, err := secret.ParseKey(text); err != nil || k.String() != text {
			t.Errorf("ParseKey(%q) = %q, %v", text, k, err)
		}
	}
	for _, c := range []struct{ text, reason string }{
		{"", "it is empty"},
		{".", `it is "."`},
		{"..", `it begins with ".."`},
		{"..json", `it begins with ".."`},
		{"a/b", "'/' at byte 1"},
		{"a b", "' ' at byte 1"},
		{longSegment + "s", "254 bytes"},
	} {
		k, err := secret.ParseKey(c.text)
		if !errors.Is(err, secret.ErrInvalid) || k != (secret.Key{}) || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("ParseKey(%q) = %q, %v\nlacks %q", c.text, k, err, c.reason)
		}
		if err := secret.CheckSegment(c.text); !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("CheckSegment(%q) = %v\nlacks %q", c.text, err, c.reason)
		}
	}
}

func TestTheRootIsTheZeroPath(t *testing.T) {
	var root secret.Path
	if !root.IsRoot() || root.String() != "" || root.Base() != "" || root.Parent() != root || root.Contains(root) || root.Reserved() {
		t.Errorf("the root is %+v", root)
	}
	if got := slices.Collect(root.Segments()); len(got) != 0 {
		t.Errorf("the root has the segments %q", got)
	}
}

func TestParentBaseAndChildAreInverse(t *testing.T) {
	for _, c := range []struct{ text, parent, base string }{
		{"a", "", "a"},
		{"db/creds", "db", "creds"},
		{"a/b/c", "a/b", "c"},
		{longPath, longSegment + "/" + longSegment, "abcd"},
	} {
		p := secret.MustParsePath(c.text)
		if p.Parent().String() != c.parent || p.Base() != c.base {
			t.Errorf("%q is %q in %q", c.text, p.Base(), p.Parent())
		}
		if child, err := p.Parent().Child(p.Base()); err != nil || child != p {
			t.Errorf("Child(%q) of %q = %q, %v", p.Base(), p.Parent(), child, err)
		}
	}
}

func TestAChildIsOneSegmentBelow(t *testing.T) {
	for _, folder := range []secret.Path{{}, secret.MustParsePath("a"), secret.MustParsePath("a/b")} {
		for _, name := range []string{"", "/", "x/y", "/x", "x/", ".", "..", "x y", longSegment + "s"} {
			if child, err := folder.Child(name); !errors.Is(err, secret.ErrInvalid) || !child.IsRoot() {
				t.Errorf("Child(%q) of %q = %q, %v", name, folder, child, err)
			}
		}
	}
	for _, full := range []string{deepPath, longPath} {
		if child, err := secret.MustParsePath(full).Child("x"); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("Child of a path at the bounds = %q, %v", child, err)
		}
	}
}

func TestAFolderContainsWhatIsBelowIt(t *testing.T) {
	for _, c := range []struct {
		folder, other string
		want          bool
	}{
		{"", "a", true},
		{"", "a/b", true},
		{"", "", false},
		{"a", "", false},
		{"a", "a", false},
		{"a", "a/b", true},
		{"a", "a/b/c", true},
		{"a", "ab", false},
		{"a", "ab/c", false},
		{"a/b", "a", false},
		{"a/b", "a/b", false},
		{"a/b", "a/bc", false},
		{"a/b", "a/b/c", true},
		{"a/b", "x/b/c", false},
		{"A", "a/b", false},
	} {
		parse := func(text string) (p secret.Path) {
			if text != "" {
				p = secret.MustParsePath(text)
			}
			return p
		}
		if got := parse(c.folder).Contains(parse(c.other)); got != c.want {
			t.Errorf("%q contains %q: %v", c.folder, c.other, got)
		}
	}
}

func TestReservedPathsHoldNoSecret(t *testing.T) {
	for _, c := range []struct {
		text               string
		reserved, storable bool
	}{
		{"sys", true, false},
		{"sys/purge", true, false},
		{"sys/cipher/x", true, false},
		{"system", false, true},
		{"sys.x/a", false, true},
		{"a/sys", false, true},
		{"a/sys/purge", false, true},
		{"Sys", false, true},
		{"purge", false, false},
		{"purge/a", false, true},
		{"a/purge", false, true},
		{"db/creds", false, true},
	} {
		p := secret.MustParsePath(c.text)
		if p.Reserved() != c.reserved {
			t.Errorf("%q is reserved: %v", c.text, p.Reserved())
		}
		if err := p.CheckStorable(); (err == nil) != c.storable || err != nil && !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%q is storable: %v", c.text, err)
		}
	}
	if err := (secret.Path{}).CheckStorable(); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("the root is storable: %v", err)
	}
}

func FuzzParsePath(f *testing.F) {
	for _, text := range []string{"", "a", "db/creds", "/", "a//b", "..x", "sys/purge", "a\xff", longPath, deepPath} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := secret.ParsePath(text)
		if err != nil {
			if !errors.Is(err, secret.ErrInvalid) || p != (secret.Path{}) {
				t.Fatalf("ParsePath(%q) = %q, %v", text, p, err)
			}
			return
		}
		if p.String() != text || strings.Trim(text, allowed+"/") != "" || len(text) > secret.MaxPathBytes {
			t.Fatalf("ParsePath(%q) = %q", text, p)
		}
		rebuilt := secret.Path{}
		for segment := range p.Segments() {
			if _, err := secret.ParseKey(segment); err != nil {
				t.Fatalf("ParsePath(%q) has the segment %q: %v", text, segment, err)
			}
			if rebuilt, err = rebuilt.Child(segment); err != nil || rebuilt != p && !rebuilt.Contains(p) {
				t.Fatalf("ParsePath(%q): up to %q it is %q, %v", text, segment, rebuilt, err)
			}
		}
		if rebuilt != p || p.Parent().String() != strings.TrimSuffix(strings.TrimSuffix(text, p.Base()), "/") {
			t.Fatalf("ParsePath(%q) is %q below %q", text, rebuilt, p.Parent())
		}
	})
}

func FuzzParseKey(f *testing.F) {
	for _, text := range []string{"", "password", "..json", "a/b", allowed} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		k, err := secret.ParseKey(text)
		_, pathErr := secret.ParsePath(text)
		if wanted := pathErr == nil && !strings.Contains(text, "/"); wanted != (err == nil) {
			t.Fatalf("ParseKey(%q) = %v, but ParsePath says %v", text, err, pathErr)
		}
		if err == nil && k.String() != text || err != nil && !errors.Is(err, secret.ErrInvalid) {
			t.Fatalf("ParseKey(%q) = %q, %v", text, k, err)
		}
	})
}
