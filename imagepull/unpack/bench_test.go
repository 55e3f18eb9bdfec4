// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// BenchmarkApply compares the processor time of coffer's applier with that of
// containerd's: in turn, on the same tar, each time on a new file system (one
// that was just emptied is many times slower). It reports medians; run it with
// -benchtime=5x or more.
func BenchmarkApply(b *testing.B) {
	requireRoot(b)
	stream := machineTar(b, 30_000, 450<<20, 32<<20)
	for _, g := range grounds() {
		b.Run(g.name, func(b *testing.B) {
			var ours, theirs []time.Duration
			b.SetBytes(int64(len(stream)))
			for b.Loop() {
				ours = append(ours, spent(b, g, func(dir string) error {
					_, err := unpack.New(unpack.Options{}).Apply(b.Context(), dir, bytes.NewReader(stream))
					return err
				}))
				theirs = append(theirs, spent(b, g, func(dir string) error {
					_, err := archive.Apply(b.Context(), dir, bytes.NewReader(stream), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
					return err
				}))
			}
			b.ReportMetric(0, "ns/op") // of both and of mkfs: means nothing
			b.ReportMetric(median(ours).Seconds()*1e3, "cpu-ms/coffer")
			b.ReportMetric(median(theirs).Seconds()*1e3, "cpu-ms/containerd")
			b.ReportMetric(median(ours).Seconds()/median(theirs).Seconds(), "coffer/containerd")
		})
	}
}

// spent is the processor time of this process during apply.
func spent(b *testing.B, g ground, apply func(dir string) error) time.Duration {
	base, done := g.fresh(b)
	defer done()
	dir := filepath.Join(base, "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	before := usage(b)
	if err := apply(dir); err != nil {
		b.Fatal(err)
	}
	return usage(b) - before
}

func usage(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}
