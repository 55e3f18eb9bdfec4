// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dialSocket is what vsock is dialled with; TCP needs no kernel module.
func dialTCP(t *testing.T, ctx context.Context, l net.Listener) (net.Conn, error) { //nolint:revive // t is first in tests
	t.Helper()
	at, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal("not TCP")
	}
	return dialSocket(ctx, unix.AF_INET, &unix.SockaddrInet4{Port: at.Port, Addr: [4]byte(at.IP.To4())}, at)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// echo answers the first connection with what it sends.
func echo(l net.Listener) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	_, _ = io.Copy(c, c)
	_ = c.Close()
}

func speak(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
	// A read that waits ends at the deadline, and at the close.
	if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := c.Read(got)
		ended <- err
	}()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("read goes on after the close")
	}
}

func TestDialSocket(t *testing.T) {
	t.Parallel()
	l := listen(t)
	go echo(l)
	c, err := dialTCP(t, t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	speak(t, c)
}

func TestDialSocketRefused(t *testing.T) {
	t.Parallel()
	l := listen(t)
	_ = l.Close()
	if _, err := dialTCP(t, t.Context(), l); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
}

// A port whose backlog is full makes a connection wait: until ctx ends.
func TestDialSocketWaits(t *testing.T) {
	t.Parallel()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	local := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if err := errors.Join(unix.Bind(fd, local), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("enough")
	for range 8 {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, cause)
		c, err := dialSocket(ctx, unix.AF_INET, at, &net.TCPAddr{})
		cancel()
		if err == nil { // there was room
			t.Cleanup(func() { _ = c.Close() })
			continue
		}
		if !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
		return
	}
	t.Error("the backlog is never full")
}

// TestDialVsock needs a kernel whose vsock has a loopback.
func TestDialVsock(t *testing.T) {
	t.Parallel()
	skip := func(reason string, err error) {
		t.Helper()
		if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "vsock") {
			t.Fatalf("%s, and REQUIRE names it: %v", reason, err)
		}
		t.Skipf("%s: %v", reason, err)
	}
	if _, err := os.Stat("/sys/module/vsock_loopback"); err != nil {
		skip("no vsock loopback", err)
	}
	const port = 0x0c0ffe
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		skip("no vsock", err)
	}
	defer func() { _ = unix.Close(fd) }()
	err = errors.Join(unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: port}), unix.Listen(fd, 1))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		got, _, err := unix.Accept(fd)
		if err != nil {
			return
		}
		f := os.NewFile(uintptr(got), "vsock")
		defer f.Close()
		b := make([]byte, 5)
		if _, err := io.ReadFull(f, b); err == nil {
			_, _ = f.Write(b)
			_, _ = io.Copy(io.Discard, f)
		}
	}()
	c, err := dialVsock(t.Context(), unix.VMADDR_CID_LOCAL, port)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.RemoteAddr().String(); got != "vsock://1:790526" {
		t.Errorf("address %s", got)
	}
	speak(t, c)
}
