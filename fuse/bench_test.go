// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// BenchmarkOpenReadClose is the floor that an agent is measured from: the same
// filesystem with nothing to check, a warm file of 1 KiB, through self. Daemon
// and reader are processes of their own.
func BenchmarkOpenReadClose(b *testing.B) {
	for _, readers := range []int{1, 8} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
			m := mount(b, func(s *Settings) { s.Anybody, s.UID = true, 1001 })
			m.put("db/creds", "password", strings.Repeat("x", 1024))
			u := m.user(1001)
			u.expect("Read", m.self("db/creds/password"), strings.Repeat("x", 1024), 0)
			before := m.stats()
			b.ResetTimer()
			var took time.Duration
			u.call("OpenReadClose", struct {
				Path           string
				Count, Readers int
			}{m.self("db/creds/password"), max(b.N, readers), readers}, &took)
			b.StopTimer()
			var requests uint64
			for operation, made := range m.stats().Requests {
				requests += made - before.Requests[operation]
			}
			b.ReportMetric(float64(b.N)/took.Seconds(), "ops/s")
			b.ReportMetric(float64(requests)/float64(b.N), "requests/op")
		})
	}
}
