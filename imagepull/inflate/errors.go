// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate

import (
	"errors"
	"fmt"
)

var (
	errInvalidRead  = errors.New("reader returned an invalid count")
	errInvalidWrite = errors.New("writer returned an invalid count")
)

// CorruptError says that the input is not a valid gzip file.
type CorruptError struct {
	// Offset is a number of bytes of the input: the fault is in or before the
	// last of them.
	Offset int64
	// Problem is what is wrong, as a short phrase.
	Problem string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("corrupt gzip data before offset %d: %s", e.Offset, e.Problem)
}
