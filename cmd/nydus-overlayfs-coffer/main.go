// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Command nydus-overlayfs-coffer is the mount helper of the route guest. It mounts
// an overlay as mount(8) would, and leaves out the options that are for Kata.
//
// containerd runs it, through mount.fuse, when it looks on the host for the users
// of a container whose mounts have the type fuse.nydus-overlayfs-coffer. The name
// begins as Kata demands of mounts that it leaves to its guest. Everything that it
// is told comes from root on the host; it runs no other program and reads no file.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
)

const (
	name  = "nydus-overlayfs-coffer"
	usage = `usage: ` + name + ` overlay TARGET -o OPTION[,OPTION]...

Mounts an overlay at TARGET. Options io.katacontainers.volume=... and
extraoption=..., which are for others, are left out. containerd runs it through
mount.fuse for mounts of the type fuse.` + name + `.
`
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) == 1 && (args[0] == "-h" || args[0] == "--help") {
		_, err := io.WriteString(out, usage)
		return err
	}
	r, err := parse(args)
	if err != nil {
		return fmt.Errorf("%w: see %s --help", err, name)
	}
	return r.mount()
}

// request is one command line.
type request struct {
	target  string
	options []string
}

// parse reads the arguments that mount(8) and mount.fuse give to a helper.
func parse(args []string) (request, error) {
	var r request
	var positional []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "-o":
			if len(args) == 0 {
				return r, errors.New("-o without options")
			}
			r.options = append(r.options, split(args[0])...)
			args = args[1:]
		case arg == "-n", arg == "-s", arg == "-v": // no mtab, sloppy, verbose
		case arg == "" || arg[0] == '-':
			return r, fmt.Errorf("unknown argument %q", arg)
		default:
			positional = append(positional, arg)
		}
	}
	if len(positional) != 2 {
		return r, fmt.Errorf("%d arguments beside the options, not a source and a target", len(positional))
	}
	if positional[0] != "overlay" {
		return r, fmt.Errorf("source %q is not \"overlay\"", positional[0])
	}
	r.target = positional[1]
	return r, nil
}
