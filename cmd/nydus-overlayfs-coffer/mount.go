// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// isForeign says that an option is not for the kernel.
func isForeign(option string) bool {
	return strings.HasPrefix(option, "io.katacontainers.volume=") || strings.HasPrefix(option, "extraoption=")
}

// maxData is the longest data that mount(2) takes, in bytes: a page with a NUL.
func maxData() int { return os.Getpagesize() - 1 }

// flag is what an option does to the flags of mount(2).
type flag struct {
	bit   uintptr
	clear bool
}

func flags() map[string]flag {
	return map[string]flag{
		"defaults": {}, "rw": {unix.MS_RDONLY, true}, "ro": {unix.MS_RDONLY, false},
		"suid": {unix.MS_NOSUID, true}, "nosuid": {unix.MS_NOSUID, false},
		"dev": {unix.MS_NODEV, true}, "nodev": {unix.MS_NODEV, false},
		"exec": {unix.MS_NOEXEC, true}, "noexec": {unix.MS_NOEXEC, false},
		"async": {unix.MS_SYNCHRONOUS, true}, "sync": {unix.MS_SYNCHRONOUS, false},
		"atime": {unix.MS_NOATIME, true}, "noatime": {unix.MS_NOATIME, false},
		"diratime": {unix.MS_NODIRATIME, true}, "nodiratime": {unix.MS_NODIRATIME, false},
		"relatime": {unix.MS_RELATIME, false}, "strictatime": {unix.MS_STRICTATIME, false},
	}
}

// split separates options at commas, those behind a backslash excepted.
func split(list string) (options []string) {
	start := 0
	for i := 0; i < len(list); i++ {
		switch list[i] {
		case '\\':
			i++
		case ',':
			options = append(options, list[start:i])
			start = i + 1
		}
	}
	return append(options, list[start:])
}

// overlay is what mount(2) is told.
type overlay struct {
	flags uintptr
	data  []string
	has   map[string]bool // keys of data
}

func newOverlay(options []string) (overlay, error) {
	o := overlay{has: map[string]bool{}}
	known := flags()
	for _, option := range options {
		if option == "" || isForeign(option) {
			continue
		}
		if f, ok := known[option]; ok {
			if o.flags |= f.bit; f.clear {
				o.flags &^= f.bit
			}
			continue
		}
		key, _, _ := strings.Cut(option, "=")
		if o.has[key] {
			return o, fmt.Errorf("option %s is given twice", key)
		}
		o.has[key] = true
		o.data = append(o.data, option)
	}
	switch {
	case !o.has["lowerdir"]:
		return o, errors.New("no lowerdir: this is not an overlay of an image")
	case o.has["upperdir"] != o.has["workdir"]:
		return o, errors.New("upperdir and workdir go together")
	}
	return o, nil
}

func (r request) mount() error {
	o, err := newOverlay(r.options)
	if err != nil {
		return err
	}
	target, err := filepath.Abs(r.target)
	if err != nil {
		return err
	}
	data := strings.Join(o.data, ",")
	if len(data) > maxData() {
		dir, short := shorten(o.data)
		if data = strings.Join(short, ","); len(data) > maxData() {
			return fmt.Errorf("mount %s: the names of the layers have %d bytes, and the kernel takes %d: squash some layers, or give the snapshotter a shorter root", target, len(data), maxData())
		}
		if err := os.Chdir(dir); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", target, "overlay", o.flags, data); err != nil {
		return fmt.Errorf("mount %s as an overlay: %w%s", target, err, hint(err, o, target))
	}
	return nil
}

// hint says what an error of mount(2) can mean.
func hint(err error, o overlay, target string) string {
	if _, statErr := os.Stat(target); statErr != nil {
		return ": the target is not there"
	}
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return ": mounting needs root with CAP_SYS_ADMIN"
	case errors.Is(err, unix.ENODEV):
		return ": the kernel has no overlay file system: modprobe overlay"
	case errors.Is(err, unix.EINVAL) && !o.has["upperdir"]:
		return ": without upperdir there must be two lowerdirs"
	case errors.Is(err, unix.EINVAL):
		return ": upperdir and workdir must be on one file system that is not an overlay; the kernel's log says more"
	}
	return ""
}

// shorten makes the directories in the options relative to the deepest one that
// has them all, which it returns.
func shorten(data []string) (dir string, short []string) {
	var all []string
	each := func(visit func(path string) string) {
		short = nil
		for _, option := range data {
			key, value, _ := strings.Cut(option, "=")
			if key == "lowerdir" || key == "upperdir" || key == "workdir" {
				paths := strings.Split(value, ":")
				for i, p := range paths {
					paths[i] = visit(p)
				}
				option = key + "=" + strings.Join(paths, ":")
			}
			short = append(short, option)
		}
	}
	each(func(p string) string { all = append(all, p); return p })
	dir = filepath.Dir("/" + strings.TrimPrefix(all[0], "/"))
	for _, p := range all {
		if !filepath.IsAbs(p) {
			return ".", data // as they are: short already
		}
		for dir != "/" && !strings.HasPrefix(p, dir+"/") {
			dir = filepath.Dir(dir)
		}
	}
	each(func(p string) string { return strings.TrimPrefix(strings.TrimPrefix(p, dir), "/") })
	return dir, short
}
