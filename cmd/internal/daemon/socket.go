// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// maxSocketPath is what sockaddr_un holds on Linux, without the final zero.
const maxSocketPath = 107

const dialTimeout = time.Second

// ListenUnix listens on a unix socket at path and gives it mode. It makes the
// parent directory if needed, and removes a socket that nobody serves any
// more. A socket that answers, and a file that is not a socket, are errors and
// stay. Closing the listener removes the socket.
func ListenUnix(path string, mode os.FileMode) (net.Listener, error) {
	if path == "" {
		return nil, errors.New("listen: no socket path")
	}
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen %s: path has more than %d bytes; choose a shorter one", path, maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // clients of other users must reach the socket
		return nil, fmt.Errorf("listen %s: %w", path, err)
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listen %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("listen %s: %w", path, err), l.Close())
	}
	return l, nil
}

func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeSocket == 0 {
		return errors.New("exists and is not a socket; remove it or configure another path")
	}
	conn, err := net.DialTimeout("unix", path, dialTimeout) //nolint:noctx,gosec // bounded by dialTimeout; the configuration names the path
	if err == nil {
		return errors.Join(errors.New("another process serves this socket; stop it or configure another path"), conn.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("cannot tell whether another process serves this socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
