// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// debian makes a Debian image of packages from this machine's own package
// sources, and puts it into the cache at dir.
func (d *demo) debian(ctx context.Context, codename, dir string) (v1.Image, error) {
	sources, err := packageSources("/etc/apt", codename)
	if err != nil {
		return nil, err
	}
	rootfs := d.tb.Path("debian.tar")
	args := append([]string{"--variant=minbase", "--quiet", "--include=ca-certificates", codename, rootfs}, sources...)
	err = d.progress(ctx, "make a Debian from packages (once)", 0, func() int64 { return folderSize(filepath.Dir(rootfs)) },
		func(ctx context.Context) error {
			_, err := d.tb.Exec(ctx, "mmdebstrap", args...)
			return err
		})
	if err != nil {
		return nil, err
	}
	return d.intoCache(dir, func(partial string) error {
		return d.progress(ctx, "split it into layers (once)", 0, func() int64 { return folderSize(partial) },
			func(ctx context.Context) error { return writeDebian(ctx, rootfs, partial) })
	})
}

// writeDebian splits a root file system's tar into layers and writes the image
// to dir/image.
func writeDebian(ctx context.Context, rootfs, dir string) error {
	layers, err := split(ctx, rootfs, dir)
	if err != nil {
		return err
	}
	img, err := testbed.ImageOf(v1.Config{Cmd: []string{"/bin/bash"}}, layers...)
	if err != nil {
		return err
	}
	return testbed.WriteLayout(img, filepath.Join(dir, "image"), "debian")
}

func openLayout(dir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("%s has %d images, not one", dir, len(manifest.Manifests))
	}
	return index.Image(manifest.Manifests[0].Digest)
}

// packageSources lists apt's source files below dir that are for a Debian
// release, which leaves other vendors' packages out.
func packageSources(dir, codename string) ([]string, error) {
	files := []string{filepath.Join(dir, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(dir, "sources.list.d", pattern))
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	var found []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(strings.Split(string(b), "\n"), func(line string) bool { return names(line, codename) }) {
			found = append(found, f)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no package source of %s is below %s: name an image with IMAGE=…", codename, dir)
	}
	return found, nil
}

// names tells whether a line of a source file, in either of apt's formats,
// is for the release.
func names(line, codename string) bool {
	words := strings.Fields(line)
	return len(words) > 1 && (words[0] == "deb" || words[0] == "Suites:") && slices.Contains(words[1:], codename)
}

func osRelease(key string) (string, error) {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), key+"="); ok {
			return strings.Trim(v, `"`), nil
		}
	}
	return "", errors.Join(fmt.Errorf("/etc/os-release has no %s: name an image with IMAGE=…", key), lines.Err())
}

// folderSize is the size of all files at or below path, as far as they can be
// read.
func folderSize(path string) int64 {
	var sum int64
	_ = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // a file that goes away meanwhile does not count
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return nil
	})
	return sum
}
