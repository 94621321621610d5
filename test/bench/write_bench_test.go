// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// BenchmarkPut compares a durable Put of a kibibyte by many callers, over mTLS
// from another process, with the same vault called directly by as many
// goroutines, and with the batches that these made, committed to another store
// with nothing above it: no sealing, no audit log, no deciding.
//
// It also counts the syncs: those of the audit log, and one for each commit to
// the store. (TestACommitOfManyBatchesIsOneSync of backend/sqlite has the
// kernel count; a checkpoint of the WAL adds some, once in a while.)
func BenchmarkPut(b *testing.B) {
	uid := uint32(os.Geteuid())
	if uid == 0 {
		uid = userUID
	}
	s := Serving{Dir: folder(b), UID: int(uid)}
	for i := range 4096 {
		s.Paths = append(s.Paths, fmt.Sprintf("db/f%d/s%d", i%64, i))
	}
	vault, user := start(b, "store", uint32(os.Geteuid())), start(b, "user", uid)
	vault.call("Part.Serve", s, nil)
	user.call("Part.Connect", Connection{Dir: s.Dir, Paths: s.Paths}, nil)
	dissect(b, vault, user)
	b.Run("callers=32", func(b *testing.B) {
		w := Work{Callers: 32, For: slice}
		put, direct := user.work("Put", w), vault.work("Put", w)
		committed := Done{}
		commit := vault.work("Commit", w)
		var groupSizes, syncs samples
		directly := func() Done {
			var before, after Counts
			vault.call("Part.Keep", nil, nil)
			vault.call("Part.Count", nil, &before)
			done := direct()
			vault.call("Part.Count", nil, &after)
			committed = commit()
			groups := float64(after.Groups - before.Groups)
			groupSizes = append(groupSizes, float64(after.Writes-before.Writes)/groups)
			syncs = append(syncs, (groups+float64(after.AuditSyncs-before.AuditSyncs))/groups)
			return done
		}
		var bare samples
		rates := rounds(b, put, func() Done {
			done := directly()
			bare = append(bare, committed.rate())
			return done
		})
		bare = bare[len(bare)-len(rates[0]):] // without the warming up
		ratio := rates[0].over(rates[1])
		b.ReportMetric(ratio.median(), "ratio")
		results.add("durable Put, 32 callers ÷ the same without gRPC", asRatio, ratio, atLeast(0.5))
		results.add("  syncs for each group", asCount, syncs, atMost(3))
		results.add("  Put ÷ the same batches on a bare store", asRatio, rates[0].over(bare))
		results.add("  Put", asRate, rates[0])
		results.add("  without gRPC", asRate, rates[1])
		results.add("  the same batches on a bare store", asRate, bare)
		results.add("  writes in a group", asCount, groupSizes)
		profiled(b, "put", 10, put, vault, user)
		profiled(b, "put-without-grpc", 10, direct, vault)
	})
}

// dissect measures where the time of a single Put goes.
func dissect(b *testing.B, vault, user *process) {
	b.Helper()
	one := Work{Callers: 1, For: slice}
	microseconds := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	var whole, before, commit, after, sync samples
	for range 5 {
		whole = append(whole, microseconds(user.work("Put", one)().each(1)))
		var phases Phases
		vault.call("Part.Dissect", 200, &phases)
		before, commit = append(before, microseconds(phases.Before)), append(commit, microseconds(phases.Commit))
		after = append(after, microseconds(phases.After))
		sync = append(sync, microseconds(vault.work("Sync", one)().each(1)))
	}
	results.add("Put, 1 caller, takes", asMicros, whole)
	results.add("  to decide, seal, log the intent and sync it", asMicros, before)
	results.add("  to commit to the store", asMicros, commit)
	results.add("  to log the outcome and sync it", asMicros, after)
	results.add("  (a write and fdatasync on this disk)", asMicros, sync)
}
