// SPDX-License-Identifier: Apache-2.0

package secret_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/secret"
)

func newValues(t testing.TB, from map[string][]byte) secret.Values {
	t.Helper()
	v, err := secret.NewValues(from)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// asMap copies what v holds.
func asMap(v secret.Values) map[string][]byte {
	result := map[string][]byte{}
	for key, value := range v.All() {
		result[key.String()] = bytes.Clone(value)
	}
	return result
}

func key(t testing.TB, text string) secret.Key {
	t.Helper()
	k, err := secret.ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestValuesHoldACopyInTheByteOrderOfKeys(t *testing.T) {
	from := map[string][]byte{"b": []byte("two"), "B": []byte("one"), "a.b": {}, "c": {0, 255}, "a": nil}
	v := newValues(t, from)
	var keys []string
	for k, value := range v.All() {
		keys = append(keys, k.String())
		if !bytes.Equal(value, from[k.String()]) {
			t.Errorf("%s is %q", k, value)
		}
		if got, found := v.Get(k); !found || !bytes.Equal(got, value) {
			t.Errorf("Get(%s) = %q, %v", k, got, found)
		}
	}
	if want := []string{"B", "a", "a.b", "b", "c"}; !slices.Equal(keys, want) || v.Len() != len(want) {
		t.Errorf("keys %q of %d", keys, v.Len())
	}
	if got, found := v.Get(key(t, "absent")); found || got != nil {
		t.Errorf("Get of an absent key = %q", got)
	}
	from["b"][0] = 'X'
	if got, _ := v.Get(key(t, "b")); string(got) != "two" {
		t.Errorf("a change of the argument changed the values: %q", got)
	}
	for range v.All() {
		break // must not go on
	}
}

func TestAppendingToAValueDoesNotOverwriteTheNext(t *testing.T) {
	v := newValues(t, map[string][]byte{"a": []byte("one"), "b": []byte("two")})
	first, _ := v.Get(key(t, "a"))
	_ = append(first, "XXX"...)
	if second, _ := v.Get(key(t, "b")); string(second) != "two" {
		t.Errorf("the second value is %q", second)
	}
}

func TestSizesTellNothingOfTheBytes(t *testing.T) {
	v := newValues(t, map[string][]byte{"b": []byte("four"), "a": {}})
	if got, want := v.Sizes(), []secret.KeySize{{Key: key(t, "a")}, {Key: key(t, "b"), Size: 4}}; !slices.Equal(got, want) {
		t.Errorf("Sizes = %v", got)
	}
}

func TestTheZeroValuesAreEmpty(t *testing.T) {
	var v secret.Values
	v.Wipe()
	if got, found := v.Get(key(t, "a")); found || got != nil || v.Len() != 0 || len(asMap(v)) != 0 || len(v.Sizes()) != 0 {
		t.Errorf("the zero Values hold %q", got)
	}
}

func TestValuesOutsideTheBoundsAreRefused(t *testing.T) {
	numbered := func(n int) map[string][]byte {
		m := map[string][]byte{}
		for i := range n {
			m[fmt.Sprintf("k%d", i)] = []byte("v")
		}
		return m
	}
	of := func(key string, size int) map[string][]byte { return map[string][]byte{key: make([]byte, size)} }
	for _, c := range []struct {
		name string
		from map[string][]byte
		want error
	}{
		{"nil", nil, secret.ErrInvalid},
		{"no key", map[string][]byte{}, secret.ErrInvalid},
		{"an empty key", of("", 1), secret.ErrInvalid},
		{"a malformed key", of("a/b", 1), secret.ErrInvalid},
		{"a reserved key", of("..data", 1), secret.ErrInvalid},
		{"a good and a malformed key", map[string][]byte{"a": nil, "b c": nil}, secret.ErrInvalid},
		{"one key", of("a", 0), nil},
		{"the most keys", numbered(secret.MaxKeys), nil},
		{"too many keys", numbered(secret.MaxKeys + 1), secret.ErrTooLarge},
		{"the most bytes", of("key", secret.MaxValueBytes-3), nil},
		{"too many bytes", of("key", secret.MaxValueBytes-2), secret.ErrTooLarge},
	} {
		v, err := secret.NewValues(c.from)
		if !errors.Is(err, c.want) || err != nil && v.Len() != 0 {
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil {
			if back, err := secret.DecodeValues(v.AppendEncoded(nil)); err != nil || back.Len() != len(c.from) {
				t.Errorf("%s, encoded: %v", c.name, err)
			}
		}
	}
}

func TestErrorsOfValuesNameTheKeyAndNotTheValue(t *testing.T) {
	_, err := secret.NewValues(map[string][]byte{"bad key": []byte("hunter2")})
	if err == nil || !strings.Contains(err.Error(), `"bad key"`) || !strings.Contains(err.Error(), "' ' at byte 3") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("NewValues: %v", err)
	}
}

func TestWipeClearsEveryCopy(t *testing.T) {
	v := newValues(t, map[string][]byte{"a": []byte("one"), "b": []byte("two")})
	data := v.AppendEncoded(make([]byte, 0, v.EncodedSize()))
	decoded, err := secret.DecodeValues(data)
	if err != nil {
		t.Fatal(err)
	}
	duplicate := v
	held, _ := v.Get(key(t, "b"))
	v.Wipe()
	decoded.Wipe()
	for _, wiped := range []secret.Values{v, duplicate, decoded} {
		for k, value := range wiped.All() {
			if !bytes.Equal(value, make([]byte, 3)) {
				t.Errorf("%s is %q after Wipe", k, value)
			}
		}
	}
	if !bytes.Equal(held, make([]byte, 3)) || bytes.Contains(data, []byte("one")) || bytes.Contains(data, []byte("two")) {
		t.Errorf("what was handed out still reads %q, the encoding %q", held, data)
	}
}

func TestWipeClearsNothingBeyondTheValues(t *testing.T) {
	v := newValues(t, map[string][]byte{"a": []byte("one")})
	data := v.AppendEncoded(nil)
	buffer := append(bytes.Clone(data), "neighbour"...)
	decoded, err := secret.DecodeValues(buffer[:len(data)])
	if err != nil {
		t.Fatal(err)
	}
	decoded.Wipe()
	if !bytes.HasSuffix(buffer, []byte("neighbour")) {
		t.Errorf("what follows the values is %q after Wipe", buffer[len(data):])
	}
}

func TestValuesEncodeAsDrawn(t *testing.T) {
	v := newValues(t, map[string][]byte{"user": []byte("app"), "pw": []byte("x")})
	want := "\x02" + "\x02pw\x01" + "\x04user\x03" + "x" + "app"
	if got := v.AppendEncoded([]byte("before:")); string(got) != "before:"+want {
		t.Errorf("encoded %q", got)
	}
	if size := v.EncodedSize(); size < len(want) {
		t.Errorf("EncodedSize = %d of %d", size, len(want))
	}
	if got := (secret.Values{}).AppendEncoded(nil); string(got) != "\x00" {
		t.Errorf("the zero Values encode to %q", got)
	}
}

func TestAnEncodingThatNobodyWroteIsRefused(t *testing.T) {
	for _, c := range []struct{ name, data string }{
		{"nothing", ""},
		{"a count alone", "\x01"},
		{"a longer form of the count", "\x81\x00" + "\x01a\x01" + "x"},
		{"a longer form of a key length", "\x01" + "\x81\x00a\x01" + "x"},
		{"a longer form of a value length", "\x01" + "\x01a\x81\x00" + "x"},
		{"an endless number", strings.Repeat("\xff", 20)},
		{"an unfinished number", "\x80"},
		{"too many keys", "\x81\x01" + strings.Repeat("\x01a\x00", 129)},
		{"a key cut short", "\x01\x05a"},
		{"a value length missing", "\x01\x01a"},
		{"a value cut short", "\x01\x01a\x02x"},
		{"bytes left over", "\x01\x01a\x01xy"},
		{"an empty key", "\x01\x00\x01x"},
		{"a malformed key", "\x01\x01/\x01x"},
		{"a reserved key", "\x01\x02..\x01x"},
		{"keys out of order", "\x02\x01b\x00\x01a\x00"},
		{"a key twice", "\x02\x01a\x00\x01a\x00"},
		{"a value too large", "\x01\x01a\x81\x80\x40" + strings.Repeat("x", secret.MaxValueBytes+1)},
		{"values too large together", "\x02\x01a\x80\x80\x40\x01b\x01" + strings.Repeat("x", secret.MaxValueBytes+1)},
	} {
		if v, err := secret.DecodeValues([]byte(c.data)); !errors.Is(err, secret.ErrTampered) || v != (secret.Values{}) {
			t.Errorf("%s: %d keys, %v", c.name, v.Len(), err)
		}
	}
}

func FuzzDecodeValues(f *testing.F) {
	f.Add([]byte("\x00"))
	f.Add([]byte("\x01\x01a\x01x"))
	f.Add([]byte("\x02\x02pw\x01\x04user\x03xapp"))
	f.Add([]byte("\x81\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := secret.DecodeValues(bytes.Clone(data))
		if err != nil {
			if !errors.Is(err, secret.ErrTampered) {
				t.Fatalf("DecodeValues(%q): %v", data, err)
			}
			return
		}
		if again := v.AppendEncoded(nil); !bytes.Equal(again, data) || v.EncodedSize() < len(again) {
			t.Fatalf("DecodeValues(%q) encodes to %q, EncodedSize %d", data, again, v.EncodedSize())
		}
		if v.Len() == 0 {
			return
		}
		made, err := secret.NewValues(asMap(v))
		if err != nil || !bytes.Equal(made.AppendEncoded(nil), data) {
			t.Fatalf("DecodeValues(%q) is nothing that NewValues makes: %v", data, err)
		}
	})
}

func FuzzValuesRoundTrip(f *testing.F) {
	f.Add("user", []byte("app"), "password", []byte{0, 255})
	f.Add("a", []byte(nil), "a", []byte("x"))
	f.Fuzz(func(t *testing.T, key1 string, value1 []byte, key2 string, value2 []byte) {
		from := map[string][]byte{key1: value1, key2: value2}
		v, err := secret.NewValues(from)
		if err != nil {
			return
		}
		back, err := secret.DecodeValues(v.AppendEncoded(nil))
		if err != nil || !maps.EqualFunc(asMap(back), from, bytes.Equal) {
			t.Fatalf("%q became %q, %v", from, asMap(back), err)
		}
	})
}
