// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPackageSourcesAreOfTheRelease(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"sources.list":                    "# deb http://deb.debian.org/debian bookworm main\n",
		"sources.list.d/debian.sources":   "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm bookworm-updates\n",
		"sources.list.d/cloud.list":       "deb https://packages.example.com/apt cloud-sdk-bookworm main\n",
		"sources.list.d/classic.list":     "deb [arch=amd64] http://deb.debian.org/debian bookworm main\n",
		"sources.list.d/other.sources":    "Types: deb\nURIs: https://packages.example.com\nSuites: nodistro\n",
		"sources.list.d/off.list.disable": "deb http://deb.debian.org/debian bookworm main\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := packageSources(dir, "bookworm")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(dir, "sources.list.d/classic.list"), filepath.Join(dir, "sources.list.d/debian.sources")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, err := packageSources(dir, "trixie"); err == nil || !strings.Contains(err.Error(), "IMAGE=") {
		t.Errorf("no source: %v, want an error that says what to do", err)
	}
}

func TestDistributeKeepsHardLinksWithTheirTarget(t *testing.T) {
	t.Parallel()
	var rootfs bytes.Buffer
	w := tar.NewWriter(&rootfs)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "./"},
		{Typeflag: tar.TypeDir, Name: "./usr/"},
		{Typeflag: tar.TypeReg, Name: "./usr/bin/perl"},
		{Typeflag: tar.TypeLink, Name: "./usr/lib/perl", Linkname: "./usr/bin/perl"},
		{Typeflag: tar.TypeSymlink, Name: "./bin", Linkname: "usr/bin"},
		{Typeflag: tar.TypeReg, Name: "./usr/share/doc"},
		{Typeflag: tar.TypeChar, Name: "./dev/null"},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layers := make([]bytes.Buffer, len(parts()))
	var writers []*tar.Writer
	for i := range layers {
		writers = append(writers, tar.NewWriter(&layers[i]))
	}
	if err := distribute(t.Context(), tar.NewReader(&rootfs), writers); err != nil {
		t.Fatal(err)
	}
	var got [][]string
	for i, w := range writers {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got = append(got, namesIn(t, &layers[i]))
	}
	want := [][]string{{"usr/", "bin"}, nil, {"usr/share/doc"}, {"usr/bin/perl", "usr/lib/perl"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func namesIn(t *testing.T, layer io.Reader) (names []string) {
	t.Helper()
	for r := tar.NewReader(layer); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

func TestArchiveKnowsPlainLayers(t *testing.T) {
	t.Parallel()
	ustar := make([]byte, 512)
	copy(ustar[257:], "ustar")
	for want, blob := range map[string][]byte{
		"gzip": {0x1f, 0x8b, 8}, "zstd": {0x28, 0xb5, 0x2f, 0xfd}, "tar": ustar, "": bytes.Repeat([]byte{7}, 512),
	} {
		if got := archive(blob); got != want {
			t.Errorf("archive: %q, want %q", got, want)
		}
	}
}
