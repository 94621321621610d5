// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"
)

var daysAndWeeks = regexp.MustCompile(`^([0-9]+)([dw])(.*)$`)

// duration is a flag with Go's units and, before those, weeks and days: "30d",
// "2w", "1d12h".
type duration time.Duration

// String returns the duration in Go's form.
func (d *duration) String() string { return time.Duration(*d).String() }

// Type names the flag's type in the help.
func (d *duration) Type() string { return "duration" }

// Set parses a duration that is not negative.
func (d *duration) Set(text string) error {
	total, rest := time.Duration(0), text
	for rest != "" {
		parts := daysAndWeeks.FindStringSubmatch(rest)
		if parts == nil {
			tail, err := time.ParseDuration(rest)
			if err != nil || tail < 0 {
				return fmt.Errorf("%q is no duration; write for example 12h, 30d or 2w", text)
			}
			total += tail
			break
		}
		unit := 24 * time.Hour
		if parts[2] == "w" {
			unit *= 7
		}
		n, err := strconv.ParseInt(parts[1], 10, 64)
		if err != nil || n > math.MaxInt64/int64(unit)/2 {
			return fmt.Errorf("%q is too long a duration", text)
		}
		total += time.Duration(n) * unit
		rest = parts[3]
	}
	if text == "" || total < 0 {
		return fmt.Errorf("%q is no duration; write for example 12h, 30d or 2w", text)
	}
	*d = duration(total)
	return nil
}
