// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// manySecrets is how many secrets a large store has.
const manySecrets = 100_000

// BenchmarkStart measures how long an agent takes from its program's start
// until it can identify workloads, and what memory it then takes, with one
// secret and with a hundred thousand.
func BenchmarkStart(b *testing.B) {
	for _, secrets := range []int{1, manySecrets} {
		b.Run(fmt.Sprintf("secrets=%d", secrets), func(b *testing.B) {
			dir, built := fillFolder(b, secrets)
			var starts, atOnce, collected, heap samples
			for b.Loop() {
				begin := time.Now()
				agent := start(b, "agent", uint32(os.Geteuid()))
				agent.call("Part.Start", dir, nil)
				starts = append(starts, float64(time.Since(begin))/float64(time.Millisecond))
				at, err := resident(agent.command.Process.Pid)
				check(b, err)
				var memory Memory
				agent.call("Process.Collect", nil, &memory)
				agent.stop()
				atOnce = append(atOnce, float64(at)/(1<<20))
				collected = append(collected, float64(memory.Resident)/(1<<20))
				heap = append(heap, float64(memory.Heap)/(1<<20))
			}
			b.ReportMetric(0, "ns/op") // of a round: it says nothing
			b.ReportMetric(starts.median(), "ms/start")
			results.add("start with "+plural(secrets, "secret"), asMillis, starts)
			results.add("  memory, resident", asMiB, atOnce)
			results.add("  memory, resident, once collected", asMiB, collected)
			results.add("  memory, live Go heap", asMiB, heap)
			results.add("  (filling the store)", asRate, samples{built.rate()})
			profileStart(b, dir, fmt.Sprintf("start-%d", secrets))
		})
	}
}

// fillFolder makes the folder of an agent with so many secrets.
func fillFolder(b *testing.B, secrets int) (dir string, built Done) {
	b.Helper()
	dir = folder(b)
	names := make([]string, secrets)
	for i := range names {
		names[i] = fmt.Sprintf("apps/team%d/service%d", i%100, i/100)
	}
	s, err := newStore(b.Context(), dir)
	check(b, err)
	begin := time.Now()
	check(b, s.fill(b.Context(), names, 256))
	built = Done{Count: int64(secrets), Took: time.Since(begin)}
	check(b, s.close())
	return dir, built
}

func profileStart(b *testing.B, dir, name string) {
	b.Helper()
	agent := start(b, "agent", uint32(os.Geteuid()))
	defer agent.stop()
	profiled(b, name, 1, func() Done {
		agent.call("Part.Start", dir, nil)
		return Done{}
	}, agent)
}
