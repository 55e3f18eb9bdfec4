// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate_test

import (
	"bytes"
	"io"
	"runtime"
	"testing"
	"time"
)

// BenchmarkHostile gives the CPU time that each decoder takes for a byte of the
// file, and the ratio of the slower of the other two to this one.
func BenchmarkHostile(b *testing.B) {
	for _, f := range hostileFiles() {
		b.Run(f.name, func(b *testing.B) {
			file := f.make(1 << 20)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			times := map[string]time.Duration{}
			passes := 0
			for b.Loop() {
				for _, d := range decoders() {
					start := threadTime(b)
					r, err := d.open(bytes.NewReader(file))
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, r); err != nil {
						b.Fatal(err)
					}
					times[d.name] += threadTime(b) - start
				}
				passes++
			}
			for name, t := range times {
				b.ReportMetric(float64(t.Nanoseconds())/float64(passes*len(file)), name+"-ns/B")
			}
			b.ReportMetric(float64(times["inflate"])/float64(max(times["klauspost"], times["std"])), "of-the-slower")
			b.ReportMetric(0, "ns/op")
		})
	}
}
