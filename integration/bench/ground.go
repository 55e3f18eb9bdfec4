// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// privateEnv tells the program that it is in a mount namespace of its own.
const privateEnv = "COFFER_BENCH_PRIVATE"

// enterPrivate starts the program anew, as the same process, in a mount
// namespace of its own: what it mounts ends with it, however that ends.
func enterPrivate() error {
	if os.Getenv(privateEnv) != "" {
		return nil
	}
	runtime.LockOSThread() // exec gives the process this thread's namespace
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return unix.Exec(self, os.Args, append(os.Environ(), privateEnv+"=1"))
}

// ground is a tmpfs that holds file systems in files.
type ground struct {
	dir  string
	next int
}

// newGround mounts a tmpfs that may have up to bytes at dir, which it makes.
func newGround(dir string, bytes int64) (*ground, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		return nil, fmt.Errorf("mount a tmpfs: %w", err)
	}
	return &ground{dir: dir}, nil
}

func (g *ground) close() error { return unix.Unmount(g.dir, unix.MNT_DETACH) }

// disk is a new ext4 in a file.
type disk struct {
	dir  string // where it is mounted
	file string
}

// fresh makes and mounts a file system of a size that is taken only as it is
// used. Its kernel thread for tables that are yet to be zeroed does not run.
func (g *ground) fresh(ctx context.Context, bytes int64) (_ *disk, err error) {
	g.next++
	d := &disk{dir: filepath.Join(g.dir, fmt.Sprintf("d%d", g.next)), file: filepath.Join(g.dir, fmt.Sprintf("d%d.ext4", g.next))}
	defer func() {
		if err != nil {
			_ = os.Remove(d.file)
			_ = os.Remove(d.dir)
		}
	}()
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(bytes); err != nil {
		return nil, err
	}
	mkfs := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-i", "8192",
		"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", d.file)
	if out, err := mkfs.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return d, mountFile(f, d.dir)
}

// mountFile mounts a file system in a file.
func mountFile(f *os.File, dir string) error {
	loop, err := attachLoop(f)
	if err != nil {
		return fmt.Errorf("attach a loop device: %w", err)
	}
	defer loop.Close() // the mount keeps it; the unmount lets it go
	if err := unix.Mount(loop.Name(), dir, "ext4", 0, "noinit_itable"); err != nil {
		return fmt.Errorf("mount %s: %w", loop.Name(), err)
	}
	return nil
}

// moveTo goes on with the file system in another file, of another disk. A killed
// run leaves that, and the next one replaces it.
func (d *disk) moveTo(ctx context.Context, file string) error {
	if err := unix.Unmount(d.dir, 0); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", d.file, file).CombinedOutput(); err != nil {
		return fmt.Errorf("copy a file system: %w: %s", err, strings.TrimSpace(string(out)))
	}
	err := os.Remove(d.file)
	d.file = file
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil { // nobody is to wait for it later
		return err
	}
	return mountFile(f, d.dir)
}

// close unmounts the file system, which first writes what is in memory, and
// gives its memory back.
func (d *disk) close() error {
	return errors.Join(unix.Unmount(d.dir, 0), os.Remove(d.file), os.Remove(d.dir))
}

// attachLoop attaches a file to a free loop device, which detaches itself
// after its last use.
func attachLoop(f *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		loop, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) { // containers have a /dev of their own
			if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n)))); err != nil && !errors.Is(err, os.ErrExist) {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{
			Fd:   uint32(f.Fd()),
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else took it meanwhile
			return nil, err
		}
	}
}
