// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// report is what a run found, in the order in which it was found.
type report struct {
	mu       sync.Mutex
	findings []finding
}

// finding is one line of the report.
type finding struct {
	what   string
	values samples
	format string // of a value, for fmt
	gate   gate
}

// gate is what must hold of a median. The zero gate always holds.
type gate struct {
	sign  string // "≥" or "≤"
	bound float64
}

func atLeast(bound float64) gate { return gate{"≥", bound} }
func atMost(bound float64) gate  { return gate{"≤", bound} }

func (g gate) holds(value float64) bool {
	switch g.sign {
	case "≥":
		return value >= g.bound
	case "≤":
		return value <= g.bound
	}
	return true
}

// The formats of values.
const (
	asRatio  = "%.2f"
	asRate   = "%.0f/s"
	asNanos  = "%.0f ns"
	asMicros = "%.0f µs"
	asMillis = "%.0f ms"
	asMiB    = "%.1f MiB"
	asCount  = "%.2f"
)

// add notes a finding. The gate is optional.
func (r *report) add(what, format string, values samples, gates ...gate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := finding{what: what, format: format, values: values}
	if len(gates) > 0 {
		f.gate = gates[0]
	}
	r.findings = append(r.findings, f)
}

// print writes the table and the verdicts, and reports whether all gates hold.
func (r *report) print(w io.Writer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.findings) == 0 {
		return true
	}
	fmt.Fprintf(w, "\n%s\n\n", machine())
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "\tmedian\tmin\tmax\trounds\tgate")
	for _, f := range r.findings {
		show := func(value float64) string { return fmt.Sprintf(f.format, value) }
		bound := ""
		if f.gate.sign != "" {
			bound = fmt.Sprintf("%s %g", f.gate.sign, f.gate.bound)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\n", f.what, show(f.values.median()),
			show(slices.Min(f.values)), show(slices.Max(f.values)), len(f.values), bound)
	}
	_ = table.Flush() // to a terminal or a pipe; there is nowhere to complain
	fmt.Fprintln(w)
	all, heading := true, ""
	for _, f := range r.findings {
		name := strings.TrimSpace(f.what)
		if name == f.what {
			heading = name
		} else {
			name = heading + ": " + name
		}
		if f.gate.sign == "" {
			continue
		}
		verdict := "pass"
		if !f.gate.holds(f.values.median()) {
			verdict, all = "FAIL", false
		}
		fmt.Fprintf(w, "%s  %s: "+f.format+" %s %g\n", verdict, name, f.values.median(), f.gate.sign, f.gate.bound)
	}
	return all
}

// plural counts things.
func plural(count int, thing string) string {
	if count == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", count, thing)
}

// machine says where the numbers are from.
func machine() string {
	var name unix.Utsname
	release := "unknown kernel"
	if unix.Uname(&name) == nil {
		release = unix.ByteSliceToString(name.Sysname[:]) + " " + unix.ByteSliceToString(name.Release[:])
	}
	load, _ := os.ReadFile("/proc/loadavg") // decoration
	average, _, _ := strings.Cut(string(load), " ")
	return fmt.Sprintf("%s, %d processors (%s), %s, %s; load at the end: %s",
		release, runtime.NumCPU(), cmp.Or(processor(), "unknown"), runtime.GOARCH, runtime.Version(), average)
}

// processor returns what the kernel calls the first processor.
func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // decoration
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
