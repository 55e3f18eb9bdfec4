// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// Main runs a daemon or tool and ends the process. run gets the arguments
// after the program's name and a context that the first SIGTERM or SIGINT
// cancels; the second one kills the process as usual. An error of run other
// than that cancellation is printed to stderr on one line, after name, and
// makes the exit code 1.
func Main(name string, run func(ctx context.Context, args []string) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	code := exitCode(ctx, name, os.Args[1:], os.Stderr, run)
	stop()
	os.Exit(code)
}

func exitCode(ctx context.Context, name string, args []string, stderr io.Writer, run func(context.Context, []string) error) int {
	err := run(ctx, args)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return 0
	}
	fmt.Fprintf(stderr, "%s: %s\n", name, oneLine(err.Error()))
	return 1
}

func oneLine(s string) string {
	return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ")
}
