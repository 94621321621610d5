// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/keyhole-agent/keyhole/secret"
)

// ReadConfig takes the defaults, then the YAML document, then the environment,
// then the flags that were set: the later wins. The document is strict: an
// unknown or doubled key is an error with its line. Errors are
// secret.ErrInvalid.
func ReadConfig(document []byte, environ []string, flags *pflag.FlagSet) (Config, error) {
	config := DefaultConfig()
	decoder := yaml.NewDecoder(bytes.NewReader(document))
	decoder.KnownFields(true)
	if err := decoder.Decode(&config); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("%w configuration: %s", secret.ErrInvalid, yamlProblem(err))
	}
	if err := decoder.Decode(&Config{}); !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("%w configuration: it has more than one document", secret.ErrInvalid)
	}
	for s := range settings(reflect.ValueOf(&config).Elem(), "") {
		if text, ok := lookup(environ, s.variable()); ok {
			if err := s.set(text); err != nil {
				return Config{}, fmt.Errorf("%w environment variable %s: %w", secret.ErrInvalid, s.variable(), err)
			}
		}
		if flags == nil {
			continue
		}
		if f := flags.Lookup(s.name); f != nil && f.Changed {
			if err := s.set(f.Value.String()); err != nil {
				return Config{}, fmt.Errorf("%w flag --%s: %w", secret.ErrInvalid, s.name, err)
			}
		}
	}
	return config, config.Check()
}

// What the YAML package says in terms of Go's types.
var (
	unknownField = regexp.MustCompile(`field (\S+) not found in type [\w.]+`)
	intoStruct   = regexp.MustCompile(`into agent\.\w+`)
)

// yamlProblem says what is wrong with a document in our words, on one line.
func yamlProblem(err error) string {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if several, ok := errors.AsType[*yaml.TypeError](err); ok {
		text = strings.Join(several.Errors, "; ")
	}
	text = unknownField.ReplaceAllString(text, `there is no setting "$1" here`)
	return intoStruct.ReplaceAllString(text, "into a group of settings")
}

// AddFlags adds a flag for each setting. A list may be given with commas, and
// by repeating the flag.
func AddFlags(flags *pflag.FlagSet) {
	config := DefaultConfig()
	for s := range settings(reflect.ValueOf(&config).Elem(), "") {
		value := &flagValue{kind: s.value.Kind(), text: s.text()}
		flag := flags.VarPF(value, s.name, "", s.help)
		if value.kind == reflect.Bool {
			flag.NoOptDefVal = "true"
		}
	}
}

// flagValue is a setting on the command line, as text.
type flagValue struct {
	kind  reflect.Kind
	text  string
	given bool
}

// String returns the text so far.
func (f *flagValue) String() string { return f.text }

// Type names the kind of value in the help.
func (f *flagValue) Type() string {
	if f.kind == reflect.Slice {
		return "list"
	}
	return f.kind.String()
}

// Set takes what was typed.
func (f *flagValue) Set(text string) error {
	if f.kind == reflect.Bool {
		if _, err := parseBool(text); err != nil {
			return err
		}
	}
	if f.kind == reflect.Slice && f.given {
		text = f.text + "," + text
	}
	f.text, f.given = text, true
	return nil
}

func parseBool(text string) (bool, error) {
	value, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("%q is neither true nor false", text)
	}
	return value, nil
}

// WriteConfig writes the configuration as a commented YAML document.
func WriteConfig(w io.Writer, config Config) error {
	var b bytes.Buffer
	b.WriteString("# Configuration of the Keyhole agent. Each setting is also an environment variable\n" +
		"# (store.path is KEYHOLE_STORE_PATH) and a flag (--store.path), which win over this file.\n")
	if err := writeStruct(&b, reflect.ValueOf(config), ""); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

func writeStruct(b *bytes.Buffer, v reflect.Value, indent string) error {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		fmt.Fprintf(b, "\n%s# %s\n%s%s:", indent, field.Tag.Get("help"), indent, field.Tag.Get("yaml"))
		if field.Type.Kind() == reflect.Struct {
			if err := writeStruct(b, v.Field(i), indent+"  "); err != nil {
				return err
			}
			continue
		}
		text, err := yaml.Marshal(onOneLine(v.Field(i).Interface()))
		if err != nil {
			return fmt.Errorf("writing setting %s: %w", field.Tag.Get("yaml"), err)
		}
		if v.Field(i).Kind() == reflect.Slice && v.Field(i).Len() > 0 {
			fmt.Fprintf(b, "\n%s", text)
		} else {
			fmt.Fprintf(b, " %s", text)
		}
	}
	return nil
}

// onOneLine keeps a text from being written as a block, whose end depends on
// what follows it.
func onOneLine(value any) any {
	text, ok := value.(string)
	if !ok || !strings.ContainsFunc(text, unicode.IsControl) || !utf8.ValidString(text) {
		return value
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: text}
}

// setting is one leaf of a Config.
type setting struct {
	name  string // "store.path"
	help  string
	value reflect.Value
}

// settings yields the leaves of a struct in the order of its fields.
func settings(v reflect.Value, prefix string) iter.Seq[setting] {
	return func(yield func(setting) bool) {
		for i := range v.NumField() {
			field := v.Type().Field(i)
			name := prefix + field.Tag.Get("yaml")
			if field.Type.Kind() == reflect.Struct {
				for s := range settings(v.Field(i), name+".") {
					if !yield(s) {
						return
					}
				}
			} else if !yield(setting{name, field.Tag.Get("help"), v.Field(i)}) {
				return
			}
		}
	}
}

func (s setting) variable() string {
	return "KEYHOLE_" + strings.ToUpper(strings.ReplaceAll(s.name, ".", "_"))
}

// set parses what a variable or a flag says: text as it is, a list with commas,
// and a truth value, as there is no other kind of setting.
func (s setting) set(text string) error {
	switch s.value.Kind() {
	case reflect.String:
		s.value.SetString(text)
	case reflect.Slice:
		items := strings.FieldsFunc(text, func(r rune) bool { return r == ',' })
		s.value.Set(reflect.ValueOf(items))
	default:
		value, err := parseBool(text)
		if err != nil {
			return err
		}
		s.value.SetBool(value)
	}
	return nil
}

func (s setting) text() string {
	if items, ok := reflect.TypeAssert[[]string](s.value); ok {
		return strings.Join(items, ",")
	}
	return fmt.Sprint(s.value.Interface())
}

func lookup(environ []string, variable string) (string, bool) {
	for _, entry := range slices.Backward(environ) {
		if text, ok := strings.CutPrefix(entry, variable+"="); ok {
			return text, true
		}
	}
	return "", false
}
