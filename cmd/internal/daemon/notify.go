// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"net"
	"os"
)

// Ready tells systemd that the daemon serves, if systemd asked for it with
// NOTIFY_SOCKET. Without NOTIFY_SOCKET it does nothing.
func Ready() error { return notify(os.Getenv("NOTIFY_SOCKET"), "READY=1") }

// Stopping tells systemd that the daemon has begun to stop, as Ready does.
func Stopping() error { return notify(os.Getenv("NOTIFY_SOCKET"), "STOPPING=1") }

func notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify %s: %w", socket, err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify %s: %w", socket, err)
	}
	return nil
}
