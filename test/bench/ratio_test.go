// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// slice is how long one side works in one round.
const slice = 300 * time.Millisecond

// Work is what a part is to do: the same thing over and over, by so many at
// once, for so long.
type Work struct {
	Callers int
	For     time.Duration
}

// Done is what came of it.
type Done struct {
	Count int64
	Took  time.Duration
}

func (d Done) rate() float64 { return float64(d.Count) / d.Took.Seconds() }

// micros is how long one took, in microseconds, when there was one caller.
func (d Done) micros() float64 { return 1e6 / d.rate() }

// do calls once, with the caller's number, as Work says. It stops at an error.
func (w Work) do(once func(caller int) error) (Done, error) {
	var (
		callers sync.WaitGroup
		count   atomic.Int64
		over    atomic.Bool
		failure atomic.Pointer[error]
	)
	timer := time.AfterFunc(w.For, func() { over.Store(true) })
	defer timer.Stop()
	begin := time.Now()
	for caller := range w.Callers {
		callers.Go(func() {
			var own int64
			for ; !over.Load(); own++ {
				if err := once(caller); err != nil {
					failure.Store(&err)
					over.Store(true)
					return
				}
			}
			count.Add(own)
		})
	}
	callers.Wait()
	done := Done{Count: count.Load(), Took: time.Since(begin)}
	if err := failure.Load(); err != nil {
		return done, *err
	}
	return done, nil
}

// side is one of the things that are compared, doing its work once.
type side func() Done

// rounds has all sides do their work in random order, again and again, and
// returns their rates, by side and round. Each warms up first.
func rounds(b *testing.B, sides ...side) []samples {
	b.Helper()
	order := make([]int, len(sides))
	for i, work := range sides {
		order[i] = i
		work()
	}
	rates := make([]samples, len(sides))
	for b.Loop() {
		rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, i := range order {
			rates[i] = append(rates[i], sides[i]().rate())
		}
	}
	b.ReportMetric(0, "ns/op") // of a round: it says nothing
	return rates
}

// samples are measurements of one thing, in the order of the rounds.
type samples []float64

// over divides round by round.
func (s samples) over(floor samples) samples {
	quotients := make(samples, len(s))
	for i := range s {
		quotients[i] = s[i] / floor[i]
	}
	return quotients
}

// median returns the middle one, or the mean of the two in the middle.
func (s samples) median() float64 {
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
