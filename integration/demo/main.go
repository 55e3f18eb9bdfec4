// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Command demo does coffer's main job once, on this machine, with real
// programs, and proves what it claims: it encrypts a system image, runs it
// through containerd with crictl and with ctr, and shows that the host's
// content store has no layer, that the registry has only ciphertext, that one
// attestation served everything, and that the key is refused when the policy
// denies it.
//
// It leaves nothing running, mounted or behind but .demo/summary.json (and
// .demo/logs if something went wrong), also when it is interrupted.
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
	"syscall"

	"github.com/coffer-cc/coffer/integration/testbed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	code := run(ctx, os.Args[1:], os.Getenv("IMAGE"), os.Stdout)
	stop()
	os.Exit(code)
}

// config is what the command line says.
type config struct {
	image    string // a registry image; "" = what can be had
	programs string // folder of coffer's programs
	tools    string // folder of containerd and the like
	state    string // folder of the summary and of logs
	cache    string // folder of the Debian image
	tmp      string // parent of the private folder; "" = the system's
}

func parse(args []string, image string, out io.Writer) (config, error) {
	root, err := testbed.FindRoot()
	if err != nil {
		return config{}, err
	}
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(out)
	var c config
	flags.StringVar(&c.image, "image", image, "registry image to use (also $IMAGE); default: Debian")
	flags.StringVar(&c.programs, "programs", filepath.Join(root, "bin"), "folder of coffer's programs")
	flags.StringVar(&c.state, "state", filepath.Join(root, ".demo"), "folder of the summary and of logs")
	flags.StringVar(&c.cache, "cache", filepath.Join(root, ".cache", "demo"), "folder of the cached Debian image")
	flags.StringVar(&c.tmp, "tmp", "", "parent of the private folder; default: the system's")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	for _, p := range []string{"coffer", "coffer-kbs", "coffer-guest", "coffer-snapshotter"} {
		if _, err := os.Stat(filepath.Join(c.programs, p)); err != nil {
			return c, fmt.Errorf("%s is not in %s: build it with \"make build\"", p, c.programs)
		}
	}
	c.tools, err = testbed.FindTools()
	return c, err
}

// run is the whole demo; the result is the exit code.
func run(ctx context.Context, args []string, image string, out io.Writer) int {
	c, err := parse(args, image, out)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(out, "demo: %v\n", err)
		return 2
	}
	d := &demo{config: c, screen: newScreen(out)}
	err = d.run(ctx)
	switch {
	case err == nil:
		fmt.Fprintln(out, "demo: ok")
		return 0
	case ctx.Err() != nil && d.unclean == nil:
		fmt.Fprintln(out, "demo: interrupted; nothing is left running, mounted or behind")
		return 130
	default:
		fmt.Fprintf(out, "demo: %v\n", err)
		return 1
	}
}
