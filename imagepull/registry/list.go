// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// maxEntries is how many entries a list of a document may have: as many as fit
// into one if each has a digest.
const maxEntries = 1 << 15

var errTooMany = errors.New("too many entries in a list")

// list is read no further than maxEntries: an empty entry takes three bytes of
// a document and, in memory, more than a hundred times that.
type list[T any] []T

// UnmarshalJSON is json.Unmarshaler's.
func (l *list[T]) UnmarshalJSON(b []byte) error {
	entries := json.NewDecoder(bytes.NewReader(b))
	switch start, err := entries.Token(); {
	case err != nil:
		return err
	case start == nil:
		return nil
	case start != json.Delim('['):
		return errors.New("not a list")
	}
	var all []T
	for entries.More() {
		if len(all) == maxEntries {
			return fmt.Errorf("more than %d: %w", maxEntries, errTooMany)
		}
		var one T
		if err := entries.Decode(&one); err != nil {
			return err
		}
		all = append(all, one)
	}
	*l = all
	return nil
}
