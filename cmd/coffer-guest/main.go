// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Command coffer-guest is the trusted part of coffer: it runs inside the TEE,
// pulls and decrypts images, and serves the Confidential Data Hub and the
// Attestation Agent on guest-components' sockets.
//
// Everything it links is in the trusted computing base;
// integration/closure_test.go holds the list.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
	"github.com/coffer-cc/coffer/imagepull"
)

const usage = `usage: coffer-guest [-c FILE]       serve until SIGTERM; without -c, FILE is
                                    ` + defaultConfigPath + ` if it exists
       coffer-guest config default  print the default configuration
       coffer-guest initdata FILE   check an init-data and print what a TEE must
                                    be launched with
       coffer-guest version         print the version
`

func main() { daemon.Main("coffer-guest", run) }

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("coffer-guest", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var config string
	flags.StringVar(&config, "c", "", "configuration file")
	flags.StringVar(&config, "config", "", "configuration file")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, err := fmt.Fprint(os.Stdout, usage)
		return err
	case err != nil:
		return fmt.Errorf("%w; see coffer-guest -h", err)
	}
	switch rest := flags.Args(); {
	case len(rest) == 0:
		return serve(ctx, config)
	case len(rest) == 2 && rest[0] == "config" && rest[1] == "default":
		_, err := fmt.Fprint(os.Stdout, defaultConfig)
		return err
	case len(rest) == 2 && rest[0] == "initdata":
		return describeInitData(os.Stdout, rest[1])
	case len(rest) == 1 && rest[0] == "version":
		_, err := fmt.Fprintln(os.Stdout, version())
		return err
	}
	return errors.New("unknown arguments; see coffer-guest -h")
}

func serve(ctx context.Context, path string) error {
	conf, err := loadConfig(path)
	if err != nil {
		return err
	}
	log, err := daemon.Logger(conf.Log.Level)
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		imagepull.BoundGarbage()
	}
	g, err := newGuest(ctx, conf, log)
	if err != nil {
		return err
	}
	return errors.Join(g.serve(ctx), g.close())
}

// version is what the build recorded about itself.
func version() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return "coffer-guest (unknown)"
	}
	v := "coffer-guest " + b.Main.Version
	for _, s := range b.Settings {
		if s.Key == "vcs.revision" {
			v += " " + s.Value
		}
	}
	return v + " " + b.GoVersion
}
