// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/containerd/log"
)

// Logger returns a logger that writes JSON lines to stderr, and makes it the
// process's default, for containerd's libraries too. level is "debug",
// "info", "warn" or "error"; "" means "info".
func Logger(level string) (*slog.Logger, error) {
	l, err := ParseLevel(level)
	if err != nil {
		return nil, err
	}
	logger := newLogger(os.Stderr, l)
	slog.SetDefault(logger)
	log.UseSlog()
	return logger, nil
}

// ParseLevel parses a level as Logger takes it, for the validation of a
// configuration.
func ParseLevel(level string) (slog.Level, error) {
	switch level {
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("log level %q is not debug, info, warn or error", level)
}

func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}
