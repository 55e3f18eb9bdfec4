// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

func (p *process) rootCommand() *cobra.Command {
	root := group("coffer", "Encrypt and pull container images, and administer their keys")
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w: see %s --help", err, cmd.CommandPath())
	})
	root.AddCommand(p.encryptCommand(), p.inspectCommand(), p.pullCommand(), p.doctorCommand(), p.bundleCommand(), p.imageCommand(), p.kbsCommand(), versionCommand())
	return root
}

// group returns a command that only has subcommands.
func group(name, short string) *cobra.Command {
	return &cobra.Command{
		Use:           name,
		Short:         short,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,

		SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			hint := "see " + cmd.CommandPath() + " --help"
			if close := cmd.SuggestionsFor(args[0]); len(close) > 0 {
				hint = "did you mean " + strings.Join(close, " or ") + "?"
			}
			return usagef("unknown command %q for %s: %s", args[0], cmd.CommandPath(), hint)
		},
	}
}

// arguments wants one argument for each name.
func arguments(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		if len(names) == 0 {
			return usagef("%s takes no argument, got %q: see %s --help", cmd.CommandPath(), args[0], cmd.CommandPath())
		}
		return usagef("%s wants %s, got %d arguments: see %s --help",
			cmd.CommandPath(), strings.Join(names, " and "), len(args), cmd.CommandPath())
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version())
			return err
		},
	}
}

// version tells what the binary was built from.
func version() string {
	number, revision := "(devel)", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" {
			number = info.Main.Version
		}
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				revision = " " + s.Value + revision
			case s.Key == "vcs.modified" && s.Value == "true":
				revision += " modified"
			}
		}
	}
	return fmt.Sprintf("coffer %s%s %s %s/%s", number, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
