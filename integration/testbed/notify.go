// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"
)

// notifySocket receives what a program tells its service manager (sd_notify).
type notifySocket struct {
	path string
	conn *net.UnixConn
	done chan struct{}
}

func listenNotify(path string) (*notifySocket, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	return &notifySocket{path: path, conn: conn, done: make(chan struct{})}, nil
}

// awaitReady returns nil when the program says that it is ready, and an error
// when the socket is closed before.
func (n *notifySocket) awaitReady() error {
	defer close(n.done)
	buf := make([]byte, 4096)
	for {
		size, err := n.conn.Read(buf)
		if err != nil {
			return err
		}
		if slices.Contains(strings.Split(string(buf[:size]), "\n"), "READY=1") {
			return nil
		}
	}
}

// close ends awaitReady and waits for it. A program that speaks later, as
// when it stops, finds nobody, which sd_notify ignores.
func (n *notifySocket) close() {
	_ = n.conn.Close()
	<-n.done
	_ = os.Remove(n.path)
}
