// SPDX-License-Identifier: Apache-2.0

package policy

import "testing"

func FuzzPatternsRoundTrip(f *testing.F) {
	for _, text := range []string{
		"", "a", "*", "**", "{a}", "a/*/{b}/**/c", "sys/purge", "a*", "{", "}{", "***", "a//b", "/", "spiffe://",
		"spiffe://td/a", "spiffe://td/{a}/**/{b}", "spiffe://td", "spiffe://{a}/b", "spiffe://td/**/**",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if path, err := parsePath(text); err == nil && path.String() != text {
			t.Errorf("parsePath(%q) is %q", text, path)
		}
		id, err := parseID(text)
		if err == nil && id.String() != text {
			t.Errorf("parseID(%q) is %q", text, id)
		}
		if r, err := compile(Policy{Name: "p", SPIFFEID: text, Path: "**", Permissions: []Permission{Read}}); err == nil {
			b := newBuilder()
			b.add(r, 1)
		}
	})
}
