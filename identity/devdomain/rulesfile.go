// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/keyhole-agent/keyhole/secret"
)

// maxRulesBytes bounds a file of rules.
const maxRulesBytes = 1 << 20

// LoadRules reads rules from a file; see ParseRules. A missing file is
// fs.ErrNotExist.
func LoadRules(path string) (rules []Rule, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading workload rules: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	text, err := io.ReadAll(io.LimitReader(file, maxRulesBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading workload rules: %w", err)
	}
	if rules, err = ParseRules(text); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return rules, nil
}

// ruleText is a rule as it is written.
type ruleText struct {
	ID         string  `yaml:"spiffe_id"`
	UID        *uint32 `yaml:"uid"`
	GID        *uint32 `yaml:"gid"`
	Executable string  `yaml:"executable"`
	SHA256     string  `yaml:"sha256"`
}

// ParseRules reads rules in YAML:
//
//	workloads:
//	  - spiffe_id: spiffe://dev.keyhole.test/web   # required
//	    uid: 1001                                  # at least one of these four
//	    gid: 1001
//	    executable: /usr/bin/nginx
//	    sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
//
// An empty text has no rules. Anything unknown, doubled or empty in it, and
// more than 1 MiB, is secret.ErrInvalid with the line. Of which trust domain
// the IDs are is checked when the rules are used.
func ParseRules(text []byte) ([]Rule, error) {
	if len(text) > maxRulesBytes {
		return nil, fmt.Errorf("%w workload rules: more than %d bytes", secret.ErrInvalid, maxRulesBytes)
	}
	var content struct {
		Workloads []ruleText `yaml:"workloads"`
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&content); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("%w workload rules: %w", secret.ErrInvalid, err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w workload rules: there is more than one YAML document", secret.ErrInvalid)
	}
	lines, err := ruleLines(text)
	if err != nil {
		return nil, err
	}
	if len(lines) != len(content.Workloads) {
		return nil, fmt.Errorf("%w workload rules: aliases are not supported", secret.ErrInvalid)
	}
	rules := make([]Rule, len(content.Workloads))
	for i, written := range content.Workloads {
		if rules[i], err = written.parse(); err != nil {
			return nil, fmt.Errorf("line %d: %w", lines[i], err)
		}
	}
	return rules, nil
}

// parse makes a rule of its text. The error is secret.ErrInvalid.
func (t ruleText) parse() (Rule, error) {
	id, err := spiffeid.FromString(t.ID)
	if err != nil {
		return Rule{}, fmt.Errorf("%w rule: spiffe_id %q: %w", secret.ErrInvalid, t.ID, err)
	}
	if id.Path() == "" {
		return Rule{}, fmt.Errorf("%w rule: spiffe_id %q has no path", secret.ErrInvalid, t.ID)
	}
	sum, err := hex.DecodeString(t.SHA256)
	if err != nil {
		return Rule{}, fmt.Errorf("%w rule: sha256 is not hexadecimal: %w", secret.ErrInvalid, err)
	}
	rule := Rule{IDs: []spiffeid.ID{id}, UID: t.UID, GID: t.GID, Executable: t.Executable, SHA256: sum}
	return rule, rule.check(id.TrustDomain())
}

// ruleLines returns the line that each rule begins on, and refuses fields
// without a value: a condition that somebody forgot to fill in would otherwise
// be no condition.
func ruleLines(text []byte) ([]int, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, fmt.Errorf("%w workload rules: %w", secret.ErrInvalid, err)
	}
	var lines []int
	for _, root := range document.Content {
		for i := 1; i < len(root.Content); i += 2 {
			for _, rule := range root.Content[i].Content {
				lines = append(lines, rule.Line)
				if err := refuseEmpty(rule); err != nil {
					return nil, err
				}
			}
		}
	}
	return lines, nil
}

func refuseEmpty(rule *yaml.Node) error {
	for i := 0; i+1 < len(rule.Content); i += 2 {
		if field, value := rule.Content[i], rule.Content[i+1]; value.Kind != yaml.ScalarNode || value.Value == "" || value.Tag == "!!null" {
			return fmt.Errorf("line %d: %w rule: %s has no value", field.Line, secret.ErrInvalid, field.Value)
		}
	}
	return nil
}
