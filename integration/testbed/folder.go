// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	folderPrefix = "coffer-bed-"
	lockFile     = "testbed.lock" // locked as long as the testbed's program lives
)

// makeDir makes a testbed's private folder and locks it. The lock is held by
// the returned file.
func makeDir(parent string) (string, *os.File, error) {
	if err := Sweep(parent); err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp(parent, folderPrefix)
	if err != nil {
		return "", nil, err
	}
	// The lock file gets its name when it is locked, or Sweep might take it.
	unlocked := filepath.Join(dir, lockFile+".new")
	lock, err := os.OpenFile(unlocked, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(unix.Flock(int(lock.Fd()), unix.LOCK_EX), os.Rename(unlocked, filepath.Join(dir, lockFile)))
	}
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, lock, nil
}

// parentFor chooses where private folders are: parent, or the system's folder
// for temporary files, or /tmp where that has too long a name for sockets.
func parentFor(parent string) string {
	if parent == "" {
		parent = os.TempDir()
	}
	if len(parent)+len("/"+folderPrefix+"4294967295") > maxDir {
		parent = "/tmp"
	}
	return parent
}

// Sweep removes the folders and cgroups of testbeds in parent whose program
// was killed. Their processes and mounts ended with it.
func Sweep(parent string) error {
	locks, err := filepath.Glob(filepath.Join(parent, folderPrefix+"*", lockFile))
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range locks {
		errs = append(errs, sweep(file))
	}
	return errors.Join(errs...)
}

func sweep(file string) error {
	lock, err := os.OpenFile(file, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its owner has just removed it
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // it is in use
	}
	dir := filepath.Dir(file)
	return errors.Join(removeCgroups(filepath.Base(dir)), os.RemoveAll(dir))
}
