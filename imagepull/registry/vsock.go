// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// dialVsock connects to a port of a context id; 2 is the host of a virtual
// machine. The system call is small enough to be made here: the library for it
// would be in the TEE too.
func dialVsock(ctx context.Context, cid, port uint32) (net.Conn, error) {
	return dialSocket(ctx, unix.AF_VSOCK, &unix.SockaddrVM{CID: cid, Port: port}, vsockAddr{cid, port})
}

type vsockAddr struct{ cid, port uint32 }

func (vsockAddr) Network() string  { return "vsock" }
func (a vsockAddr) String() string { return fmt.Sprintf("vsock://%d:%d", a.cid, a.port) }

// socketConn is a stream socket of a family that package net does not know.
type socketConn struct {
	*os.File
	remote net.Addr
}

func (c socketConn) LocalAddr() net.Addr  { return c.remote } // nobody asks for it
func (c socketConn) RemoteAddr() net.Addr { return c.remote }

func dialSocket(ctx context.Context, family int, to unix.Sockaddr, remote net.Addr) (net.Conn, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", remote, os.NewSyscallError("socket", err))
	}
	c := socketConn{os.NewFile(uintptr(fd), remote.String()), remote}
	if err := c.connect(ctx, to); err != nil {
		_ = c.Close() // nothing was sent
		return nil, fmt.Errorf("%s: %w", remote, err)
	}
	return c, nil
}

// connect waits for the connection until ctx ends.
func (c socketConn) connect(ctx context.Context, to unix.Sockaddr) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	ended := context.AfterFunc(ctx, func() { _ = c.SetWriteDeadline(time.Unix(1, 0)) })
	var failed error
	begun := false
	err = raw.Write(func(fd uintptr) (done bool) {
		if !begun {
			begun = true
			failed = os.NewSyscallError("connect", unix.Connect(int(fd), to))
			return !errors.Is(failed, unix.EINPROGRESS)
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			failed = os.NewSyscallError("getsockopt", err)
		case code != 0:
			failed = os.NewSyscallError("connect", unix.Errno(code))
		default: // the poller also wakes for nothing
			_, err := unix.Getpeername(int(fd))
			failed = os.NewSyscallError("connect", err)
			return !errors.Is(err, unix.ENOTCONN)
		}
		return true
	})
	if !ended() { // the deadline may have been set after the connection was made
		return context.Cause(ctx)
	}
	return errors.Join(err, failed)
}
