// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, part := range parts {
		_, _ = h.Write(part) // never fails
	}
	return h.Sum(nil)
}

func benchmarkAppend(b *testing.B, strict bool, appenders int) {
	l := mustOpen(b, Config{Dir: b.TempDir(), Key: testKey, StrictReads: strict})
	e := read(1)
	e.Time = time.Time{}
	b.ReportAllocs()
	b.SetParallelism(appenders)
	if appenders == 1 {
		for b.Loop() {
			if err := l.Append(e); err != nil {
				b.Fatal(err)
			}
		}
	} else {
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if err := l.Append(e); err != nil {
					b.Error(err)
				}
			}
		})
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// SetParallelism counts goroutines per processor; the names say it too.

func BenchmarkAppendBounded1(b *testing.B)        { benchmarkAppend(b, false, 1) }
func BenchmarkAppendBounded32PerCPU(b *testing.B) { benchmarkAppend(b, false, 32) }
func BenchmarkAppendStrict1(b *testing.B)         { benchmarkAppend(b, true, 1) }
func BenchmarkAppendStrict32PerCPU(b *testing.B)  { benchmarkAppend(b, true, 32) }

// BenchmarkFloorWrite is the write alone, of a line as long.
func BenchmarkFloorWrite(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "floor"))
	if err != nil {
		b.Fatal(err)
	}
	e := read(1)
	line := encoded(1, false, e)
	offset := int64(0)
	for b.Loop() {
		if _, err := f.WriteAt(line, offset); err != nil {
			b.Fatal(err)
		}
		offset += int64(len(line))
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkEncode(b *testing.B) {
	e, buffer := read(1), []byte(nil)
	b.ReportAllocs()
	for b.Loop() {
		buffer = appendRecord(buffer[:0], 1, false, &e)
	}
}

func BenchmarkParse(b *testing.B) {
	line := encoded(1, false, read(1))
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		if _, err := parseRecord(line); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	dir := b.TempDir()
	l := mustOpen(b, Config{Dir: dir, Key: testKey})
	for n := range 100_000 {
		mustAppend(b, l, read(n))
	}
	if _, err := l.Sync(context.Background()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Verify(dir, testKey, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*100_000/b.Elapsed().Seconds(), "records/s")
}
