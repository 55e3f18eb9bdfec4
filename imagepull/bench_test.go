// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/store"
)

// BenchmarkPull is bytes of tar per second through the whole pipeline, from a
// registry on loopback to the store.
func BenchmarkPull(b *testing.B) {
	for _, compression := range []imagetest.Compression{imagetest.Gzip, imagetest.Zstd} {
		for _, encrypted := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/encrypted=%v", compression, encrypted), func(b *testing.B) {
				benchmarkPull(b, compression, encrypted)
			})
		}
	}
}

func benchmarkPull(b *testing.B, compression imagetest.Compression, encrypted bool) {
	r, key := imagetest.New(b), imagetest.NewKey(b, kid)
	var image imagetest.Image
	for range 4 {
		l := imagetest.Layer{Compression: compression, Random: 8 << 20, Files: make(map[string]string)}
		for i := range 1000 { // half of it compresses well
			l.Files[fmt.Sprintf("d%d/f%d", i%50, i)] = strings.Repeat(fmt.Sprintf("line %d of many\n", i), 600)
		}
		if encrypted {
			l.Key = &key
		}
		image.Layers = append(image.Layers, l)
	}
	p := r.Push(b, "a/b:v1", image)
	var total int64
	for _, l := range p.Layers {
		total += int64(len(l.Tar))
	}
	client, err := registry.NewClient(registry.Options{Insecure: []string{r.Host()}})
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	root := newTmpfs(b, "2g")
	b.SetBytes(total)
	var spent time.Duration // of all processors, the registry's work included
	for b.Loop() {
		b.StopTimer()
		dir := filepath.Join(root, "store")
		s, err := store.Open(dir, store.Options{})
		if err != nil {
			b.Fatal(err)
		}
		puller := imagepull.NewPuller(client, newKeyring(key), s, imagepull.Options{})
		b.StartTimer()
		began := cpuTime(b)
		if _, _, _, err := puller.PullLayer(b.Context(), p.Reference, p.Manifest.Digest, p.Chain()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		spent += cpuTime(b) - began
		puller.Close()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(spent.Seconds()/float64(b.N)/float64(total)*1e9, "cpu-s/GB")
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
