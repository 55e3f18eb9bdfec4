// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Accounts are users and groups in the formats of /etc/passwd and /etc/group, as
// an image's manifest tells them to hosts that see no file of the image, and start
// its processes under the ids that they find there. Either may be empty, and have
// less than the image.
type Accounts struct{ Passwd, Group string }

// agree says that all that is told is in the image's own files. What is not could
// give a process other ids than the image means, root's for one.
func (a Accounts) agree(rootfs rootDir) error {
	for _, f := range []accountFile{{"passwd", a.Passwd, 4}, {"group", a.Group, 3}} {
		if f.told == "" {
			continue
		}
		real, err := rootfs.read("etc/" + f.name)
		if err != nil {
			return err
		}
		for line := range strings.Lines(f.told) {
			if line = strings.TrimSpace(line); line != "" && !f.has(real, strings.Split(line, ":")) {
				return fmt.Errorf("the image's manifest tells hosts of %.100q what its /etc/%s does not say: encrypt and publish it again, or ask who has changed the manifest: %w", line, f.name, errdefs.ErrFailedPrecondition)
			}
		}
	}
	return nil
}

type accountFile struct {
	name, told string
	ids        int // fields of a line up to its last id
}

// has says whether the file real has a line with the same name and ids, and as
// members of a group at least those that are told. What looks for ids takes those
// that a line is too short for as 0, so such a line is not told by anybody honest.
func (f accountFile) has(real string, told []string) bool {
	return len(told) >= f.ids && find(real, f.ids, func(line []string) bool {
		return told[0] == line[0] && slices.Equal(told[2:f.ids], line[2:f.ids]) &&
			(f.ids > 3 || isSubset(field(told, 3), field(line, 3)))
	}) != nil
}

func field(line []string, n int) []string {
	if len(line) <= n {
		return nil
	}
	return strings.Split(line[n], ",")
}

func isSubset(some, all []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return s != "" && !slices.Contains(all, s) })
}
