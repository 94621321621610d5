// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestTheMedianIsInTheMiddle(t *testing.T) {
	for _, c := range []struct {
		values samples
		want   float64
	}{
		{samples{7}, 7},
		{samples{9, 1, 2}, 2},
		{samples{4, 100, 1, 2}, 3},
	} {
		if got := c.values.median(); got != c.want {
			t.Errorf("the median of %v is %v, not %v", c.values, got, c.want)
		}
	}
}

func TestTheReportFailsWhereAGateDoes(t *testing.T) {
	for _, c := range []struct {
		gate  gate
		value float64
		holds bool
	}{
		{atLeast(0.5), 0.5, true},
		{atLeast(0.5), 0.49, false},
		{atMost(3), 3, true},
		{atMost(3), 3.1, false},
	} {
		var r report
		var printed strings.Builder
		r.add("first", asRatio, samples{1})
		r.add("second ÷ floor", asRatio, samples{c.value}, c.gate)
		if r.print(&printed) != c.holds || strings.Contains(printed.String(), "FAIL  second ÷ floor") == c.holds {
			t.Errorf("%v %s %v: %s", c.value, c.gate.sign, c.gate.bound, printed.String())
		}
	}
}

func TestWorkEndsAtAnError(t *testing.T) {
	broken := errors.New("broken")
	done, err := Work{Callers: 4, For: time.Hour}.do(func(caller int) error {
		if caller == 2 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || done.Took > time.Minute {
		t.Errorf("%+v %v", done, err)
	}
}
