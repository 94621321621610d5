// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// outputs are what -o may say.
func outputs() []string { return []string{"table", "json", "yaml"} }

func (p *program) checkOutput() error {
	if !slices.Contains(outputs(), p.output) {
		return usagef("-o %q is none of %s", p.output, strings.Join(outputs(), ", "))
	}
	return nil
}

// print writes an answer in the form that was asked for with -o.
func (p *program) print(answer any, table func(w io.Writer) error) error {
	switch p.output {
	case "json":
		encoder := json.NewEncoder(p.out)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return encoder.Encode(answer)
	case "yaml":
		return writeYAML(p.out, answer)
	}
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	if err := table(w); err != nil {
		return err
	}
	return w.Flush()
}

// writeYAML writes what json.Marshal makes of an answer, so that both forms have
// the same names in the same order.
func writeYAML(w io.Writer, answer any) error {
	document, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.UseNumber()
	node, err := yamlNode(decoder)
	if err != nil {
		return err
	}
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	if err := encoder.Encode(node); err != nil {
		return err
	}
	return encoder.Close()
}

// yamlNode reads one JSON value, or one name of an object.
func yamlNode(d *json.Decoder) (*yaml.Node, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case json.Delim:
		node := &yaml.Node{Kind: yaml.MappingNode}
		if t == '[' {
			node.Kind = yaml.SequenceNode
		}
		for d.More() {
			child, err := yamlNode(d)
			if err != nil {
				return nil, err
			}
			node.Content = append(node.Content, child)
		}
		_, err := d.Token() // the closing one
		return node, err
	case string:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: t}, nil
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: t.String()}, nil
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(t)}, nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}, nil
}

// row writes the cells of a table's row, but for empty ones at its end.
func row(w io.Writer, cells ...any) error {
	texts := make([]string, len(cells))
	used := 0
	for i, cell := range cells {
		if texts[i] = fmt.Sprint(cell); texts[i] != "" {
			used = i + 1
		}
	}
	_, err := fmt.Fprintln(w, strings.Join(texts[:used], "\t"))
	return err
}

// shownText is a text as a table shows it: on one line, and unable to command
// the terminal. It is quoted when that takes something, or when it could be
// taken for quoted.
func shownText(text string) string {
	plain := !strings.HasPrefix(text, `"`) && strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
	if plain {
		return text
	}
	return strconv.Quote(text)
}

// when shows a time for people: how long ago, and exactly.
func (p *program) when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return fmt.Sprintf("%s ago (%s)", age(p.now().Sub(t)), t.Local().Format(time.RFC3339))
}

func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds()))) // another clock may be ahead
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// count names a number of things: "1 secret", "2 secrets".
func count[N int | uint64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
