// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"errors"
	"fmt"
	"strings"
)

// maxSegment is the longest part of an ID accepted, in bytes; it fits a file
// name on every file system in use.
const maxSegment = 255

// ID is the key of one secret in the resource plugin.
type ID struct {
	Repository, Type, Tag string
}

// ParseID parses "repository/type/tag". Each part consists of ASCII letters,
// digits, "_", "-" and "."; it does not begin with ".".
func ParseID(path string) (ID, error) {
	parts := strings.Split(path, "/")
	if len(parts) != 3 {
		return ID{}, fmt.Errorf("resource %q: not of the form repository/type/tag", shorten(path))
	}
	for _, p := range parts {
		if err := checkSegment(p); err != nil {
			return ID{}, fmt.Errorf("resource %q: %w", shorten(path), err)
		}
	}
	return ID{Repository: parts[0], Type: parts[1], Tag: parts[2]}, nil
}

func checkSegment(s string) error {
	switch {
	case s == "":
		return errors.New("a part is empty")
	case len(s) > maxSegment:
		return fmt.Errorf("a part is longer than %d bytes", maxSegment)
	case s[0] == '.':
		return fmt.Errorf("part %q begins with a dot", s)
	}
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && c != '_' && c != '-' && c != '.' {
			return fmt.Errorf("part %q: only letters, digits, _, - and . are allowed", s)
		}
	}
	return nil
}

// String returns "repository/type/tag".
func (id ID) String() string { return id.Repository + "/" + id.Type + "/" + id.Tag }

// URI returns the kbs:/// URI of id, without authority.
func (id ID) URI() URI { return URI{Plugin: DefaultPlugin, Path: id.String()} }
