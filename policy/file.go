// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/keyhole-agent/keyhole/secret"
)

// ParseFile reads what operators write:
//
//	policies:
//	  - name: app-read
//	    spiffe_id: spiffe://example.org/ns/{ns}/sa/{sa}
//	    path: apps/{ns}/{sa}/**
//	    permissions: [read, list]
//
// Every field is required, no other is allowed, and none may occur twice. There
// is one document, with at least one policy. Scalars are taken as they are
// written, so 010 is the text "010". Anchors, aliases, merge keys and tags are
// refused. All policies are checked as Compile does.
//
// The error is secret.ErrInvalid. It tells what is wrong on which line, up to
// 20 times.
func ParseFile(data []byte) ([]Policy, error) {
	list, err := policyList(data)
	if err != nil {
		return nil, err
	}
	var found problems
	policies := make([]Policy, 0, len(list.Content))
	lines := make(map[string]int, len(list.Content))
	for _, item := range list.Content {
		p, err := parsePolicy(item)
		if err != nil {
			found.add(err)
			continue
		}
		if line, taken := lines[p.Name]; taken {
			found.add(atLine(item.Line, "there is a policy %q on line %d already", p.Name, line))
			continue
		}
		lines[p.Name] = item.Line
		policies = append(policies, p)
	}
	if err := found.err(); err != nil {
		return nil, err
	}
	return policies, nil
}

// policyList returns the sequence that holds the policies.
func policyList(data []byte) (*yaml.Node, error) {
	if valid := validPrefix(data); valid < len(data) {
		return nil, atLine(lineAt(data, valid), "the byte 0x%02x is not UTF-8 text", data[valid])
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, further yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, atLine(1, "the file is empty; it begins with policies:")
	case err != nil:
		return nil, notYAML(data, err)
	}
	switch err := decoder.Decode(&further); {
	case err == nil:
		return nil, atLine(further.Line, "a second document begins; one file holds one")
	case !errors.Is(err, io.EOF):
		return nil, notYAML(data, err)
	}
	fields, err := mapping(document.Content[0], "policies")
	if err != nil {
		return nil, err
	}
	list := fields["policies"]
	if err := plain(list, yaml.SequenceNode, "policies is a list"); err != nil {
		return nil, err
	}
	if len(list.Content) == 0 {
		return nil, atLine(list.Line, "the list of policies is empty")
	}
	return list, nil
}

// parsePolicy reads one policy and checks it.
func parsePolicy(item *yaml.Node) (Policy, error) {
	fields, err := mapping(item, fieldName, fieldSPIFFEID, fieldPath, fieldPermissions)
	if err != nil {
		return Policy{}, err
	}
	var p Policy
	for _, field := range []struct {
		name string
		text *string
	}{{fieldName, &p.Name}, {fieldSPIFFEID, &p.SPIFFEID}, {fieldPath, &p.Path}} {
		if *field.text, err = scalar(fields[field.name], field.name); err != nil {
			return Policy{}, err
		}
	}
	listed := fields[fieldPermissions]
	if err := plain(listed, yaml.SequenceNode, "permissions is a list, such as [read, list]"); err != nil {
		return Policy{}, err
	}
	for _, node := range listed.Content {
		text, err := scalar(node, "a permission")
		if err != nil {
			return Policy{}, err
		}
		permission, err := ParsePermission(text)
		if err != nil {
			return Policy{}, fmt.Errorf("line %d: policy %q: %w", node.Line, p.Name, err)
		}
		p.Permissions = append(p.Permissions, permission)
	}
	if _, err := compile(p); err != nil {
		line := item.Line
		if rule, ok := errors.AsType[*ruleError](err); ok {
			line = fields[rule.field].Line
		}
		return Policy{}, fmt.Errorf("line %d: %w", line, err)
	}
	return p, nil
}

// mapping returns the values of a mapping that has exactly the given keys.
func mapping(node *yaml.Node, keys ...string) (map[string]*yaml.Node, error) {
	what := "a mapping is expected here, with " + strings.Join(keys, ", ")
	if err := plain(node, yaml.MappingNode, what); err != nil {
		return nil, err
	}
	fields := make(map[string]*yaml.Node, len(keys))
	lines := make(map[string]int, len(keys))
	for i := 0; i < len(node.Content); i += 2 {
		key := node.Content[i]
		name, err := scalar(key, "a key")
		if err != nil {
			return nil, err
		}
		if !slices.Contains(keys, name) {
			return nil, atLine(key.Line, "unknown key %q; known are %s", name, strings.Join(keys, ", "))
		}
		if line, taken := lines[name]; taken {
			return nil, atLine(key.Line, "the key %q is on line %d already", name, line)
		}
		fields[name], lines[name] = node.Content[i+1], key.Line
	}
	for _, key := range keys {
		if fields[key] == nil {
			return nil, atLine(node.Line, "the key %q is missing", key)
		}
	}
	return fields, nil
}

// scalar returns the text of a scalar as it was written.
func scalar(node *yaml.Node, what string) (string, error) {
	if err := plain(node, yaml.ScalarNode, what+" is text; it is quoted when it begins with * or {"); err != nil {
		return "", err
	}
	if node.Tag == "!!null" {
		return "", atLine(node.Line, "%s has no value", what)
	}
	return node.Value, nil
}

// plain refuses nodes of another kind than expected, and what YAML has beyond
// mappings, lists and text.
func plain(node *yaml.Node, expected yaml.Kind, what string) error {
	switch {
	case node.Kind == yaml.AliasNode:
		return atLine(node.Line, "aliases such as *%s are not supported; quote a text that begins with *", node.Value)
	case node.Anchor != "":
		return atLine(node.Line, "anchors such as &%s are not supported", node.Anchor)
	case node.Style&yaml.TaggedStyle != 0:
		return atLine(node.Line, "tags such as %s are not supported", node.Tag)
	case node.Kind != expected:
		return atLine(node.Line, "%s", what)
	}
	return nil
}

// notYAML wraps an error of the YAML parser. Its most likely cause here is a
// pattern that YAML takes for an alias or a mapping, so it tells where there is one.
func notYAML(data []byte, err error) error {
	number := 0
	for line := range bytes.Lines(data) {
		number++
		for _, before := range []string{" *", "[*", ",*", ": {"} {
			if bytes.Contains(line, []byte(before)) {
				return fmt.Errorf("%w policies: %w; a text that begins with * or { is quoted, see line %d", secret.ErrInvalid, err, number)
			}
		}
	}
	return fmt.Errorf("%w policies: %w", secret.ErrInvalid, err)
}

// validPrefix returns how many bytes of data are UTF-8 before the first that is
// not; all of them when there is none.
func validPrefix(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(data)
}

func lineAt(data []byte, offset int) int { return 1 + bytes.Count(data[:offset], []byte("\n")) }

func atLine(line int, format string, arguments ...any) error {
	return fmt.Errorf("line %d: %w policies: %s", line, secret.ErrInvalid, fmt.Sprintf(format, arguments...))
}
