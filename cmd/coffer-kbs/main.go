// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Command coffer-kbs is the Key Broker Service: it appraises the evidence of
// TEEs and releases keys to those that its policy names. It belongs to the
// owner of the keys, not to the host that runs the images.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
)

func main() {
	daemon.Main("coffer-kbs", func(ctx context.Context, args []string) error {
		return run(ctx, args, os.Stdout)
	})
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	root := rootCommand(stdout)
	root.SetArgs(args)
	root.SetOut(stdout)
	return root.ExecuteContext(ctx)
}

func rootCommand(stdout io.Writer) *cobra.Command {
	var config string
	serveRun := func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), config) }
	root := &cobra.Command{
		Use: "coffer-kbs", Short: "Key Broker Service of coffer", Args: noArguments,
		SilenceErrors: true, SilenceUsage: true, RunE: serveRun,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: see %s --help", err, cmd.CommandPath())
	})
	root.PersistentFlags().StringVarP(&config, "config", "c", "", "configuration `FILE`")
	configs := group("config", "Show configuration")
	configs.AddCommand(&cobra.Command{
		Use: "default", Short: "Print the default configuration", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return printTo(stdout, "%s", defaultConfig) },
	})
	admin := group("admin", "Make credentials of administrators")
	admin.AddCommand(adminTokenCommand(stdout))
	root.AddCommand(
		&cobra.Command{Use: "serve", Short: "Serve until SIGTERM", Args: noArguments, RunE: serveRun},
		initCommand(stdout), admin, configs,
		&cobra.Command{
			Use: "version", Short: "Print the version", Args: noArguments,
			RunE: func(*cobra.Command, []string) error { return printTo(stdout, "coffer-kbs %s\n", version()) },
		},
	)
	return root
}

// group returns a command that only has subcommands.
func group(name, short string) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
}

// noArguments says what to do with an argument that nobody asked for.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasAvailableSubCommands() {
		return fmt.Errorf("unknown command %q for %s: see %s --help", args[0], cmd.CommandPath(), cmd.CommandPath())
	}
	return fmt.Errorf("%s takes no argument, got %q: files and folders are named by flags, see %s --help", cmd.CommandPath(), args[0], cmd.CommandPath())
}

func initCommand(stdout io.Writer) *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use: "init --dir DIR", Short: "Write a configuration and an administrator's key and token", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return initialize(o, time.Now(), stdout) },
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "`DIR` to write to")
	f.StringVar(&o.listen, "listen", "127.0.0.1:8080", "`ADDR` to listen on")
	f.BoolVar(&o.sample, "sample", false, "accept sample evidence, which anybody can make up: for development only")
	f.BoolVar(&o.tls, "tls", false, "make a certificate, and one of a CA for clients to trust")
	f.StringArrayVar(&o.names, "tls-name", nil, "further host `NAME` or address for the certificate")
	f.DurationVar(&o.ttl, "ttl", 24*time.Hour, "lifetime of the administrator's token")
	_ = cmd.MarkFlagRequired("dir")
	return cmd
}

func adminTokenCommand(stdout io.Writer) *cobra.Command {
	var dir string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "token --dir DIR", Short: "Replace DIR/admin.token by a fresh one", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return renewToken(dir, ttl, time.Now(), stdout) },
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`DIR` that init wrote")
	cmd.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "lifetime of the token")
	_ = cmd.MarkFlagRequired("dir")
	return cmd
}

func printTo(w io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintf(w, format, args...)
	return err
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
