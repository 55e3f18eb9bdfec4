// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/coffer-cc/coffer/cdh/keyprovider"
	"github.com/coffer-cc/coffer/cdh/keywrap"
)

// keyFile reads a key-encryption key, or makes one in a file that only its
// owner can read. The caller clears it.
func keyFile(name string) (kek []byte, created bool, err error) {
	kek, err = readKey(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return kek, false, err
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("key file: %w", err)
	}
	kek = keyprovider.GenerateKEK()
	_, err = file.Write(kek)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		clear(kek)
		return nil, false, errors.Join(fmt.Errorf("key file: %w", err), os.Remove(name))
	}
	return kek, true, nil
}

func readKey(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, 2*keywrap.KEKSize))
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	if len(data) != keywrap.KEKSize {
		size := len(data)
		clear(data)
		return nil, usagef("key file %s has %d bytes or more, want the %d raw bytes of a key (not base64, no line end); "+
			"name a file that does not exist to have one made", name, size, keywrap.KEKSize)
	}
	return data, nil
}
