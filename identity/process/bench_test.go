// SPDX-License-Identifier: Apache-2.0

package process

import (
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkThread compares identifying a thread with the floor: opening its
// pidfd, asking for its ids and closing it, which nothing that identifies can
// do without.
func BenchmarkThread(b *testing.B) {
	path := program(b)
	a := start(b, path, 0)
	b.Run("floor", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			fd, err := unix.PidfdOpen(a.pid, unix.PIDFD_THREAD)
			if err != nil {
				b.Fatal(err)
			}
			info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_CREDS | unix.PIDFD_INFO_CGROUPID}
			if err := unix.IoctlPidfdInfo(fd, &info); err != nil {
				b.Fatal(err)
			}
			if err := unix.Close(fd); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, k := range map[string]kernel{"pidfd": {}, "proc": {procOnly: true}} {
		b.Run("known/"+name, func(b *testing.B) {
			s := newStage(b, k, Config{})
			identifyAll(b, s, a)
		})
		b.Run("unknown/"+name, func(b *testing.B) {
			s := newStage(b, k, Config{MaxProcesses: 1}) // each forgets the other
			identifyAll(b, s, a, start(b, path, 0))
		})
	}
	b.Run("known/pidfd/parallel", func(b *testing.B) {
		s := newStage(b, kernel{}, Config{})
		b.ReportAllocs()
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := s.Thread(b.Context(), uint32(a.pid)); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

func identifyAll(b *testing.B, s *stage, actors ...*actor) {
	b.Helper()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		a := actors[i%len(actors)]
		if _, err := s.Thread(b.Context(), uint32(a.pid)); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func TestAKnownProcessIsIdentifiedWithoutAllocating(t *testing.T) {
	s := newStage(t, kernel{}, Config{})
	a := start(t, program(t), 0)
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		if _, err := s.Thread(ctx, uint32(a.pid)); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
