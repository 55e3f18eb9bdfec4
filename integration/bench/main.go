// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Command bench measures the data path of an image pull beside what it is to
// be compared with, in one run on one machine: the floor that the machine
// sets, containerd with imgcrypt, skopeo with umoci. docs/performance.md
// explains the figures.
//
// Each repetition unpacks to a new file system and runs in a process of its
// own; contenders take turns. It needs root, for mounts. What it mounts is in
// a mount namespace of its own, so that nothing is left however it ends. It
// keeps generated images in .cache/bench and writes to .bench.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/coffer-cc/coffer/integration/testbed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) int {
	var err error
	switch {
	case len(args) == 1 && args[0] == "child":
		err = child(ctx)
	case len(args) == 4 && args[0] == "snapshotter":
		err = serveSnapshotter(ctx, args[1], args[2], args[3])
	case len(args) == 4 && args[0] == "registry":
		err = serveRegistry(ctx, cache{args[1]}, args[2], args[3])
	default:
		return runBench(ctx, args)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// settings are what the command line says.
type settings struct {
	quick    bool
	runs     int
	only     []string // parts; empty means all
	check    bool     // a missed target is a failure
	update   bool     // of the document
	root     string   // of the checkout
	programs string   // folder of coffer's programs
}

func (c settings) wants(part string) bool { return len(c.only) == 0 || slices.Contains(c.only, part) }

func parse(args []string) (settings, error) {
	var c settings
	var err error
	if c.root, err = testbed.FindRoot(); err != nil {
		return c, err
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	var only string
	flags.BoolVar(&c.quick, "quick", false, "two runs and small images: to see that all works")
	flags.IntVar(&c.runs, "runs", 0, "how often each contender runs (default 5, with -quick 2)")
	flags.StringVar(&only, "only", "", "parts to run, comma-separated: "+strings.Join(parts(), ", "))
	flags.BoolVar(&c.check, "check", false, "exit with 1 if a target is missed")
	flags.BoolVar(&c.update, "update", false, "write the tables into docs/performance.md, and the plot beside it")
	flags.StringVar(&c.programs, "programs", filepath.Join(c.root, "bin"), "folder of coffer's programs")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if only != "" {
		c.only = strings.Split(only, ",")
	}
	for _, p := range c.only {
		if !slices.Contains(parts(), p) {
			return c, fmt.Errorf("-only %s: not one of %s", p, strings.Join(parts(), ", "))
		}
	}
	switch {
	case c.runs < 0:
		return c, errors.New("-runs: less than 0")
	case c.runs == 0 && c.quick:
		c.runs = 2
	case c.runs == 0:
		c.runs = 5
	}
	if c.update && (c.quick || len(c.only) > 0 || c.runs < 5) {
		return c, errors.New("-update needs a whole run: without -quick and -only, and at least five rounds")
	}
	return c, nil
}

// runBench is the whole benchmark; the result is the exit code.
func runBench(ctx context.Context, args []string) int {
	c, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil && os.Geteuid() != 0 {
		err = errors.New("needs root: each repetition makes and mounts a file system")
	}
	if err == nil {
		err = enterPrivate()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		return 2
	}
	figures, err := measureAll(ctx, c, os.Stdout)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "bench: interrupted; nothing is left running, mounted or behind")
		return 130
	case err != nil:
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		return 1
	}
	missed := summary(os.Stdout, figures)
	if c.check && missed > 0 {
		return 1
	}
	return 0
}

// summary prints how many targets are reached and returns how many are not.
func summary(out io.Writer, figures []figure) (missed int) {
	total := 0
	for _, f := range figures {
		if f.Target == "" {
			continue
		}
		total++
		if !f.OK {
			missed++
		}
	}
	fmt.Fprintf(out, "bench: %d of %d targets reached\n", total-missed, total)
	return missed
}
