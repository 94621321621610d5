// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"testing"
)

// BenchmarkPut compares a durable Put of a kibibyte by many callers, over mTLS
// from another process, with the same vault called directly by as many
// goroutines, and with the batches that these made, committed to another store
// with nothing above it: no sealing, no audit log, no deciding.
//
// It also counts the syncs: those of the audit log, and one for each commit to
// the store. (TestACommitOfManyBatchesIsOneSync of backend/sqlite has the
// kernel count; a checkpoint of the WAL adds two, every 16 MiB of changed pages.)
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
	b.Run("callers=32", func(b *testing.B) { comparePuts(b, 32, vault, user) })
}

func comparePuts(b *testing.B, callers int, vault, user *process) {
	w := Work{Callers: callers, For: slice}
	put, direct, commit := user.work("Put", w), vault.work("Put", w), vault.work("Commit", w)
	var groupSizes, syncs, bare samples
	counted := func(work side) side {
		return func() Done {
			var before, after Counts
			vault.call("Part.Count", nil, &before)
			done := work()
			vault.call("Part.Count", nil, &after)
			groups := float64(after.Groups - before.Groups)
			groupSizes = append(groupSizes, float64(after.Writes-before.Writes)/groups)
			syncs = append(syncs, (groups+float64(after.AuditSyncs-before.AuditSyncs))/groups)
			return done
		}
	}
	kept := func() Done {
		vault.call("Part.Keep", nil, nil)
		done := direct()
		bare = append(bare, commit().rate())
		return done
	}
	rates := rounds(b, counted(put), counted(kept))
	bare = bare[1:] // without the warming up
	ratio := rates[0].over(rates[1])
	b.ReportMetric(ratio.median(), "ratio")
	results.add("durable Put, "+plural(callers, "caller")+" ÷ the same without gRPC", asRatio, ratio, atLeast(0.5))
	results.add("  syncs for each group", asCount, syncs, atMost(3))
	results.add("  writes in a group", asCount, groupSizes)
	results.add("  Put ÷ the same batches on a bare store", asRatio, rates[0].over(bare))
	results.add("  Put", asRate, rates[0])
	results.add("  without gRPC", asRate, rates[1])
	results.add("  the same batches on a bare store", asRate, bare)
	profiled(b, "put", 10, put, vault, user)
	profiled(b, "put-without-grpc", 10, direct, vault)
}

// dissect measures where the time of a single Put goes.
func dissect(b *testing.B, vault, user *process) {
	b.Helper()
	one := Work{Callers: 1, For: slice}
	var whole, before, commit, after, sync samples
	for range 10 {
		whole = append(whole, user.work("Put", one)().micros())
		var phases Phases
		vault.call("Part.Dissect", 200, &phases)
		before, commit, after = append(before, phases.Before), append(commit, phases.Commit), append(after, phases.After)
		sync = append(sync, vault.work("Sync", one)().micros())
	}
	results.add("Put, 1 caller, takes", asMicros, whole)
	results.add("  to decide, seal, log the intent and sync it", asMicros, before)
	results.add("  to commit to the store", asMicros, commit)
	results.add("  to log the outcome and sync it", asMicros, after)
	results.add("  (a write and fdatasync on this disk)", asMicros, sync)
}
