// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/inflate"
)

// BenchmarkKinds runs the decoders in turn on tars of this machine's files and
// reports the median of each in bytes of output per second of CPU time. Use it
// with -benchtime=9x or so.
func BenchmarkKinds(b *testing.B) {
	for _, kind := range []struct {
		name string
		dirs []string
	}{
		{"libraries", []string{"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"}},
		{"programs", []string{"/usr/bin"}},
		{"node", []string{"/usr/lib/node_modules"}},
		{"python", []string{"/usr/lib/python3", "/usr/lib/python3.11"}},
		{"scripts", []string{"/usr/share/perl", "/usr/share/vim", "/usr/sbin", "/etc"}},
		{"documents", []string{"/usr/share/doc"}},
		{"go", []string{filepath.Join(runtime.GOROOT(), "src")}}, //nolint:staticcheck // no more than a place with files
	} {
		b.Run(kind.name, func(b *testing.B) {
			file := gzipped(b, tarOf(b, 48<<20, kind.dirs))
			if len(file) < 1<<20 {
				b.Skip("too few files here: ", kind.dirs)
			}
			compareSpeed(b, file)
		})
	}
}

type decoder struct {
	name string
	open func(io.Reader) (io.Reader, error)
}

func decoders() []decoder {
	return []decoder{
		{"inflate", func(r io.Reader) (io.Reader, error) { return inflate.NewReader(r) }},
		{"klauspost", func(r io.Reader) (io.Reader, error) { return kgzip.NewReader(r) }},
		{"std", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	}
}

func compareSpeed(b *testing.B, file []byte) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	speeds := map[string][]float64{}
	b.ReportAllocs()
	for b.Loop() {
		for _, d := range decoders() {
			start := threadTime(b)
			r, err := d.open(bytes.NewReader(file))
			if err != nil {
				b.Fatal(err)
			}
			n, err := io.Copy(io.Discard, r)
			if err != nil {
				b.Fatal(err)
			}
			speeds[d.name] = append(speeds[d.name], float64(n)/1e6/(threadTime(b)-start).Seconds())
		}
	}
	median := map[string]float64{}
	for name, s := range speeds {
		slices.Sort(s)
		median[name] = s[len(s)/2]
		b.ReportMetric(median[name], name+"-MB/cpu-s")
	}
	b.ReportMetric(median["inflate"]/median["klauspost"], "x-klauspost")
}

// threadTime is the CPU time of the calling thread.
func threadTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// tarOf makes a tar of the regular files in dirs, up to a size.
func tarOf(b *testing.B, limit int, dirs []string) []byte {
	b.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // what can't be read is left out
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return nil //nolint:nilerr // the same
			}
			if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(content))}); err != nil {
				return err
			}
			if _, err := w.Write(content); err != nil {
				return err
			}
			if buf.Len() >= limit {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	return buf.Bytes()
}

// gzipped is what gzip -6 makes of plain, by the real program if there is one.
func gzipped(b *testing.B, plain []byte) []byte {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), "gzip", "-6", "-n", "-c")
	cmd.Stdin = bytes.NewReader(plain)
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return compress(b, 6, plain)
	}
	if err != nil {
		b.Fatal(err)
	}
	return out
}
