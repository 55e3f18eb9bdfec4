// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Command coffer-snapshotter is the containerd proxy plugin of a node: it hands
// image layers to coffer-guest and mounts what that unpacked.
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
	"github.com/coffer-cc/coffer/plugin"
)

const usage = `usage:
  coffer-snapshotter [-c FILE]            serve (default FILE: /etc/coffer/snapshotter.toml, if it is there)
  coffer-snapshotter config default       print the default configuration
  coffer-snapshotter config containerd [-c FILE] [flags]
                                          print the part of containerd's configuration that uses coffer
      --containerd 2.4                    containerd's release: 1.7, 2.0 to 2.4
      --route local|guest                 (default: that of the configuration)
      --handler NAME[=TYPE]               runtime handler that uses coffer, again for several (default:
                                          coffer=io.containerd.runc.v2, in the guest route kata=io.containerd.kata.v2);
                                          without TYPE another file defines it
      --unpack NAME                       another snapshotter that images are pulled into, again for several
                                          (default: overlayfs)
      --systemd-cgroup                    runc uses systemd for cgroups
      --main                              the lines that containerd 1.7 wants in its main file
  coffer-snapshotter uninstall [-c FILE] [--drop-in FILE] [--dry-run]
                                          remove what it keeps on this node, unless something uses it
  coffer-snapshotter version
`

func main() {
	daemon.Main("coffer-snapshotter", func(ctx context.Context, args []string) error {
		return run(ctx, args, os.Stdout)
	})
}

func run(ctx context.Context, args []string, out io.Writer) error {
	command := func(words ...string) bool {
		if len(args) < len(words) {
			return false
		}
		for i, w := range words {
			if args[i] != w {
				return false
			}
		}
		return true
	}
	switch {
	case command("config", "default"):
		_, err := out.Write(defaultTOML)
		return err
	case command("config", "containerd"):
		return printStanza(args[2:], out)
	case command("config"):
		return errors.New("config: say `config default` or `config containerd`")
	case command("uninstall"):
		return uninstall(ctx, args[1:], out)
	case command("version"):
		_, err := fmt.Fprintln(out, version())
		return err
	case command("help"):
		_, err := io.WriteString(out, usage)
		return err
	}
	if command("serve") {
		args = args[1:]
	}
	path, err := parseFlags(flag.NewFlagSet("serve", flag.ContinueOnError), args, out)
	if err != nil {
		return err
	}
	config, err := loadConfig(path)
	if err != nil {
		return err
	}
	return serve(ctx, config)
}

// parseFlags parses args with -c and --config added to flags, and returns the
// path of the configuration file, "" for none.
func parseFlags(flags *flag.FlagSet, args []string, out io.Writer) (path string, err error) {
	flags.SetOutput(io.Discard)
	flags.StringVar(&path, "c", "", "")
	flags.StringVar(&path, "config", "", "")
	err = flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		_, werr := io.WriteString(out, usage)
		return "", errors.Join(err, werr)
	}
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if err != nil {
		return "", fmt.Errorf("%w: see coffer-snapshotter help", err)
	}
	if path == "" {
		if _, err := os.Stat(defaultConfigPath); err == nil {
			path = defaultConfigPath
		}
	}
	return path, nil
}

func printStanza(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("config containerd", flag.ContinueOnError)
	var s plugin.Stanza
	var main bool
	flags.StringVar(&s.Containerd, "containerd", plugin.DefaultContainerd, "")
	flags.StringVar(&s.Route, "route", "", "")
	flags.BoolVar(&s.SystemdCgroup, "systemd-cgroup", false, "")
	flags.BoolVar(&main, "main", false, "")
	flags.Func("handler", "", func(v string) error {
		s.Handlers = append(s.Handlers, plugin.ParseHandler(v))
		return nil
	})
	flags.Func("unpack", "", func(v string) error {
		s.Unpack = append(s.Unpack, v)
		return nil
	})
	path, err := parseFlags(flags, args, out)
	if err != nil {
		return err
	}
	config, err := loadConfig(path)
	if err != nil {
		return err
	}
	s.Name, s.Address, s.Root = config.Name, config.Address, config.Root
	if s.Route == "" {
		s.Route = config.Route
	}
	write := s.TOML
	if main {
		write = s.Main
	}
	b, err := write()
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "coffer-snapshotter (unknown version)"
	}
	return "coffer-snapshotter " + info.Main.Version
}
