// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// measurementsDir is where kernels from 6.16 on have the registers of a TDX
// guest: files that hold a register's value, and extend it when written.
const measurementsDir = "/sys/devices/virtual/misc/tdx_guest/measurements"

// Measurements reads and writes the files of a TDX guest's measurements by name.
type Measurements interface {
	ReadFile(name string) ([]byte, error)
	WriteFile(name string, b []byte) error
}

// sysfs are the kernel's own.
type sysfs struct{ dir string }

func (s sysfs) ReadFile(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(s.dir, filepath.Base(name)))
}

// WriteFile writes in one call, as the kernel asks for.
func (s sysfs) WriteFile(name string, b []byte) error {
	f, err := os.OpenFile(filepath.Join(s.dir, filepath.Base(name)), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// RegisterHash is SHA-384.
func (*Attester) RegisterHash() crypto.Hash { return crypto.SHA384 }

// Register follows the UEFI specification's table for TDX. Register n is RTMR
// n-1.
func (*Attester) Register(pcr uint64) uint32 {
	switch {
	case pcr == 1 || pcr == 7:
		return 1
	case pcr >= 2 && pcr <= 6:
		return 2
	case pcr >= 8 && pcr <= 15:
		return 3
	default:
		return 4
	}
}

// ReadRegister returns the 48 bytes of a register. The error is NotImplemented
// where the kernel does not offer them.
func (a *Attester) ReadRegister(register uint32) ([]byte, error) {
	name, err := registerFile(register)
	if err != nil {
		return nil, err
	}
	b, err := a.measurements.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("this kernel does not offer the TDX guest's registers (Linux 6.16 does): %w", errdefs.ErrNotImplemented)
	case err != nil:
		return nil, fmt.Errorf("read register %s: %w", name, err)
	case len(b) != crypto.SHA384.Size():
		return nil, fmt.Errorf("register %s has %d bytes: %w", name, len(b), errdefs.ErrDataLoss)
	}
	return b, nil
}

// ExtendRegister extends a register with 48 bytes.
func (a *Attester) ExtendRegister(register uint32, digest []byte) error {
	name, err := registerFile(register)
	if err != nil {
		return err
	}
	if len(digest) != crypto.SHA384.Size() {
		return fmt.Errorf("register %s: digest of %d bytes: %w", name, len(digest), errdefs.ErrInvalidArgument)
	}
	if err := a.measurements.WriteFile(name, digest); err != nil {
		return fmt.Errorf("extend register %s: %w", name, err)
	}
	return nil
}

func registerFile(register uint32) (string, error) {
	if register < 1 || register > 4 {
		return "", fmt.Errorf("register %d: %w: a TDX guest has 1 to 4", register, errdefs.ErrInvalidArgument)
	}
	return fmt.Sprintf("rtmr%d:sha384", register-1), nil
}

// SetEventLog adds entries to the event log in evidence.
func (a *Attester) SetEventLog(entries func() ([]byte, error)) { a.entries = entries }
