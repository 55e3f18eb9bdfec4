// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package publish

import (
	"fmt"
	"os"
	"syscall"
)

// lockDir keeps two writers of one layout from losing each other's tag.
func lockDir(dir string) (unlock func(), err error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock folder %s: %w", dir, err)
	}
	return func() { _ = file.Close() }, nil
}
