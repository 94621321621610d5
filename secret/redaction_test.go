// SPDX-License-Identifier: Apache-2.0

package secret_test

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"strings"
	"testing"
	"text/template"

	"github.com/keyhole-agent/keyhole/secret"
)

const hidden = "hunter2-passphrase"

// forms are the ways in which the hidden bytes could show up in a text.
func forms() []string {
	decimal := strings.Trim(fmt.Sprintf("%v", []byte(hidden)), "[]")
	return []string{
		hidden, hidden[:8], decimal, strings.ReplaceAll(decimal, " ", ","), strings.ReplaceAll(decimal, " ", ", "),
		hex.EncodeToString([]byte(hidden)), strings.ToUpper(hex.EncodeToString([]byte(hidden))),
		fmt.Sprintf("% x", hidden), base64.StdEncoding.EncodeToString([]byte(hidden))[:20],
		strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", []byte(hidden)), "[]byte{"), "}"),
		strings.Trim(fmt.Sprintf("%o", []byte(hidden)), "[]"), strings.Trim(fmt.Sprintf("%b", []byte(hidden)), "[]"),
	}
}

func shows(text string) bool {
	for _, form := range forms() {
		if strings.Contains(text, form) {
			return true
		}
	}
	return false
}

// The places from which Values must not print. The fields are read by
// reflection alone.
type (
	exportedField   struct{ Values secret.Values }
	unexportedField struct{ values secret.Values }
	pointerField    struct {
		Exported   *secret.Values
		unexported *secret.Values
	}
	embedded   struct{ secret.Values }
	interfaced struct {
		Exported   any
		unexported any
	}
	nested struct {
		inner struct{ deep []unexportedField }
	}
)

func places(v secret.Values) map[string]any {
	inner := nested{}
	inner.inner.deep = []unexportedField{{v}}
	channel := make(chan secret.Values, 1)
	channel <- v
	return map[string]any{
		"itself": v, "pointer": &v, "pointer to pointer": new(&v),
		"exported field": exportedField{v}, "pointer to exported field": &exportedField{v},
		"unexported field": unexportedField{v}, "pointer to unexported field": &unexportedField{v},
		"pointer fields": pointerField{&v, &v}, "pointer to pointer fields": &pointerField{&v, &v},
		"embedded": embedded{v}, "pointer to embedded": &embedded{v},
		"interfaces": interfaced{v, v}, "pointers in interfaces": &interfaced{&v, &v},
		"slice": []secret.Values{v}, "array": [1]secret.Values{v}, "slice of pointers": []*secret.Values{&v},
		"slice of any": []any{v, &v}, "map": map[string]secret.Values{"k": v}, "map of any": map[string]any{"k": &v},
		"map key": map[secret.Values]int{v: 1}, "nested": inner, "pointer to nested": &inner, "slice of nested": []*nested{&inner},
		"secret": secret.Secret{Values: v}, "pointer to secret": &secret.Secret{Values: v},
		"function": func() secret.Values { return v }, "channel": channel,
	}
}

func TestValuesNeverPrint(t *testing.T) {
	v := newValues(t, map[string][]byte{"password": []byte(hidden)})
	for place, value := range places(v) {
		for verb := range strings.FieldsSeq("%v %+v %#v %s %q %+q %#q %x %X %#x %d %#d %b %o %c %U %t %p %e %g %T %w %z %10v %-40s %.3s %08d") {
			if got := fmt.Sprintf(verb, value); shows(got) {
				t.Errorf("%s: %s prints %s", place, verb, got)
			}
			if got := fmt.Errorf("doing it: "+verb, value).Error(); shows(got) {
				t.Errorf("%s: %s in an error prints %s", place, verb, got)
			}
		}
		if got := fmt.Sprint(value) + fmt.Sprintln(value); shows(got) {
			t.Errorf("%s: Sprint gives %s", place, got)
		}
	}
}

func TestValuesPrintAsRedacted(t *testing.T) {
	v := newValues(t, map[string][]byte{"password": []byte(hidden)})
	for _, value := range []any{v, &v} {
		for verb := range strings.FieldsSeq("%v %+v %#v %s %q %x %X %d %b") {
			if got := fmt.Sprintf(verb, value); got != "[redacted]" {
				t.Errorf("%s prints %q", verb, got)
			}
		}
	}
	if v.String() != "[redacted]" || v.LogValue().String() != "[redacted]" {
		t.Errorf("String is %q, LogValue %q", v.String(), v.LogValue())
	}
	if got := fmt.Sprintf("%+v", exportedField{v}); got != "{Values:[redacted]}" {
		t.Errorf("a field prints %q", got)
	}
}

func TestValuesNeverReachALog(t *testing.T) {
	v := newValues(t, map[string][]byte{"password": []byte(hidden)})
	for place, value := range places(v) {
		var out bytes.Buffer
		options := &slog.HandlerOptions{Level: slog.LevelDebug}
		for _, handler := range []slog.Handler{slog.NewTextHandler(&out, options), slog.NewJSONHandler(&out, options)} {
			logger := slog.New(handler)
			logger.Info("logged", "value", value)
			logger.With("value", value).WithGroup("g").Debug("logged", slog.Group("h", slog.Any("value", value)))
		}
		plain := log.New(&out, "", 0)
		plain.Print(value)
		plain.Printf("%+v", value)
		if shows(out.String()) {
			t.Errorf("%s: the log has\n%s", place, out.String())
		}
	}
}

func TestValuesAreLoggedAsRedacted(t *testing.T) {
	v := newValues(t, map[string][]byte{"password": []byte(hidden)})
	var text, asJSON bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("logged", "value", v)
	slog.New(slog.NewJSONHandler(&asJSON, nil)).Info("logged", "value", v)
	if !strings.Contains(text.String(), "value=[redacted]") || !strings.Contains(asJSON.String(), `"value":"[redacted]"`) {
		t.Errorf("logged\n%s%s", text.String(), asJSON.String())
	}
}

func TestValuesNeverReachAnEncoding(t *testing.T) {
	v := newValues(t, map[string][]byte{"password": []byte(hidden)})
	page := template.Must(template.New("page").Parse("{{.}} {{printf `%x` .}}"))
	for place, value := range places(v) {
		encoded, err := json.Marshal(value)
		var unsupported *json.UnsupportedTypeError
		if err != nil && !errors.As(err, &unsupported) {
			t.Errorf("%s: JSON: %v", place, err)
		}
		inXML, _ := xml.Marshal(value) // many of the places have no XML form
		var inGob, filled bytes.Buffer
		_ = gob.NewEncoder(&inGob).Encode(value) // nor one in gob
		_ = page.Execute(&filled, value)         // functions and channels are refused
		for _, got := range []string{string(encoded), string(inXML), inGob.String(), filled.String()} {
			if shows(got) {
				t.Errorf("%s: encoded as %q", place, got)
			}
		}
	}
	var filled strings.Builder
	if err := page.Execute(&filled, v); err != nil || filled.String() != "[redacted] [redacted]" {
		t.Errorf("a template prints %q, %v", filled.String(), err)
	}
	if got, err := json.Marshal(map[string]any{"v": v, "p": &v}); err != nil || string(got) != `{"p":"[redacted]","v":"[redacted]"}` {
		t.Errorf("JSON is %s, %v", got, err)
	}
}

// TestTheSearchFindsWhatPlainBytesPrint guards the tests above: a []byte in the
// same places does show.
func TestTheSearchFindsWhatPlainBytesPrint(t *testing.T) {
	type plain struct{ bytes []byte }
	for verb := range strings.FieldsSeq("%v %+v %#v %s %q %x %X %d %b %o") {
		if got := fmt.Sprintf(verb, plain{[]byte(hidden)}); !shows(got) {
			t.Errorf("%s prints %s unnoticed", verb, got)
		}
	}
}
