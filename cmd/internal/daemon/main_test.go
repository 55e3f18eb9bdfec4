// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestExitCode(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		ended  bool // the context, beforehand
		err    error
		want   int
		stderr string
	}{
		{"ok", false, nil, 0, ""},
		{"help", false, flag.ErrHelp, 0, ""},
		{"error", false, errors.New("no such file"), 1, "prog: no such file\n"},
		{"two errors", false, errors.Join(errors.New("a"), errors.New("b")), 1, "prog: a; b\n"},
		{"stopped", true, fmt.Errorf("serve: %w", context.Canceled), 0, ""},
		{"cancelled by nobody", false, context.Canceled, 1, "prog: context canceled\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.ended {
				cancel()
			}
			var stderr bytes.Buffer
			got := exitCode(ctx, "prog", []string{"a"}, &stderr, func(_ context.Context, args []string) error {
				if len(args) != 1 || args[0] != "a" {
					t.Errorf("args = %q", args)
				}
				return c.err
			})
			if got != c.want || stderr.String() != c.stderr {
				t.Errorf("got %d, %q; want %d, %q", got, stderr.String(), c.want, c.stderr)
			}
		})
	}
}

// TestMainSignal runs Main in a process of its own, since signals are per
// process.
func TestMainSignal(t *testing.T) {
	const env = "COFFER_DAEMON_TEST_MAIN"
	if socket := os.Getenv(env); socket != "" {
		Main("prog", func(ctx context.Context, _ []string) error {
			l, err := ListenUnix(socket, 0o600)
			if err != nil {
				return err
			}
			defer l.Close()
			if err := Ready(); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		})
	}
	t.Parallel()
	dir := t.TempDir()
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ready.Close() }()
	socket := filepath.Join(dir, "sub", "s")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainSignal$")
	cmd.Env = append(os.Environ(), env+"="+socket, "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := ready.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, err := ready.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Fatalf("notification %q, %v", buf[:n], err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || stderr.Len() != 0 {
		t.Errorf("stopped with %v, stderr %q", err, stderr.String())
	}
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("socket stays after stop: %v", err)
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"", "debug", "info", "warn", "error"} {
		if _, err := ParseLevel(level); err != nil {
			t.Errorf("level %q: %v", level, err)
		}
	}
	if _, err := Logger("loud"); err == nil || !strings.Contains(err.Error(), "debug, info, warn or error") {
		t.Errorf("unknown level: %v", err)
	}
	var buf bytes.Buffer
	l := newLogger(&buf, slog.LevelWarn)
	l.Info("quiet")
	l.Warn("heard", "stage", "fetch")
	var line map[string]any
	if err := json.Unmarshal(buf.Bytes(), &line); err != nil || line["msg"] != "heard" || line["stage"] != "fetch" {
		t.Errorf("log %q: %v", buf.String(), err)
	}
}
