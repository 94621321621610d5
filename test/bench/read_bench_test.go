// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// userUID is the workload's, when there is root to change users.
const userUID = 1001

// fixture is an agent that serves secrets to a workload.
type fixture struct {
	dir   string
	uid   uint32 // the workload's
	paths []string
	agent *process
	user  *process
}

// serve starts an agent on a store of so many secrets, and the workload, which
// one of a hundred policies lets read them.
func serve(b *testing.B, secrets int) *fixture {
	b.Helper()
	f := &fixture{dir: folder(b), uid: uint32(os.Geteuid())}
	if f.uid == 0 {
		f.uid = userUID
	}
	for i := range secrets {
		f.paths = append(f.paths, fmt.Sprintf("db/s%d", i))
	}
	s, err := newStore(b.Context(), f.dir)
	check(b, err)
	check(b, s.allow(b.Context(), userID(int(f.uid)), "db", 99))
	check(b, s.fill(b.Context(), f.paths, 128))
	check(b, s.close())
	f.agent = start(b, "agent", uint32(os.Geteuid()))
	f.agent.call("Part.Start", f.dir, nil)
	f.user = start(b, "user", f.uid)
	return f
}

// BenchmarkGet compares Secrets.Get of a kibibyte with a gRPC echo of as much:
// both over mTLS with SVIDs, on a kept connection through a Unix socket, with
// gRPC's own client, from one process into another one that serves both.
func BenchmarkGet(b *testing.B) {
	f := serve(b, 1000)
	f.agent.call("Part.ServeEcho", f.dir, nil)
	f.user.call("Part.Connect", Connection{Dir: f.dir, Echo: true, Paths: f.paths}, nil)
	for _, c := range []struct {
		callers int
		least   float64
	}{{1, 0.6}, {32, 0.5}} {
		callers, least := c.callers, c.least
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			w := Work{Callers: callers, For: slice}
			get := f.user.work("Get", w)
			rates := rounds(b, get, f.user.work("Echo", w), f.user.work("GetWithClient", w))
			what := "Get, " + plural(callers, "caller")
			ratio := rates[0].over(rates[1])
			b.ReportMetric(ratio.median(), "ratio")
			results.add(what+" ÷ echo", asRatio, ratio, atLeast(least))
			results.add("  the same with package client ÷ echo", asRatio, rates[2].over(rates[1]))
			results.add("  Get", asRate, rates[0])
			results.add("  echo", asRate, rates[1])
			profiled(b, fmt.Sprintf("get-%d", callers), 10, get, f.agent, f.user)
		})
	}
}

// BenchmarkOpenReadClose compares opening, reading and closing a file of a
// kibibyte through the agent's mount with the same filesystem without checks.
// The file is warm: the kernel knows its name, its attributes and its pages.
func BenchmarkOpenReadClose(b *testing.B) {
	requireRoot(b)
	f := serve(b, 1)
	dir := folder(b)
	floor, floorUser := start(b, "floor", 0), start(b, "user", userUID)
	floor.call("Part.Mount", Floor{Dir: dir, UID: userUID, Path: f.paths[0]}, nil)
	f.user.call("Part.Open", filepath.Join(f.dir, "secrets", f.paths[0], "password"), nil)
	floorUser.call("Part.Open", filepath.Join(dir, "secrets", f.paths[0], "password"), nil)
	for _, readers := range []int{1, 8} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
			w := Work{Callers: readers, For: slice}
			open := f.user.work("OpenReadClose", w)
			var requests samples
			counted := func() Done {
				var before, after uint64
				floor.call("Part.Requests", nil, &before)
				done := floorUser.work("OpenReadClose", w)()
				floor.call("Part.Requests", nil, &after)
				requests = append(requests, float64(after-before)/float64(done.Count))
				return done
			}
			rates := rounds(b, open, counted)
			what := "open+read+close, " + plural(readers, "reader")
			ratio := rates[0].over(rates[1])
			b.ReportMetric(ratio.median(), "ratio")
			results.add(what+" ÷ without checks", asRatio, ratio, atLeast(0.4))
			results.add("  open+read+close", asRate, rates[0])
			results.add("  without checks", asRate, rates[1])
			results.add("  kernel requests for each", asCount, requests[1:], atMost(4)) // without the warming up
			profiled(b, fmt.Sprintf("open-%d", readers), 10, open, f.agent)
		})
	}
}
