// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// Labels with which the publisher of an image tells the host the users and
// groups of an image that the host does not see, in the formats of /etc/passwd
// and /etc/group. containerd makes them of the annotations of a layer. They are
// a hint: who runs a container in the guest decides by the image's own files.
const (
	passwdLabel = "containerd.io/snapshot/coffer.passwd"
	groupLabel  = "containerd.io/snapshot/coffer.group"

	// maxAccounts bounds each of them, in bytes; containerd refuses longer
	// labels.
	maxAccounts = 4096
)

// writeAccounts writes what the labels of a layer tell of users and groups into
// its root directory. The lowest layer of an image has both files in any case: of a
// user without a line containerd says so, of one without a file "no such file".
func writeAccounts(root string, l layer) error {
	files := []struct{ name, content string }{
		{"passwd", l.labels[passwdLabel]},
		{"group", l.labels[groupLabel]},
	}
	etc := filepath.Join(root, "etc")
	for _, f := range files {
		if f.content == "" && l.parent != "" {
			continue
		}
		if len(f.content) > maxAccounts {
			return fmt.Errorf("label coffer.%s has %d bytes, more than %d: %w", f.name, len(f.content), maxAccounts, errdefs.ErrInvalidArgument)
		}
		if err := os.MkdirAll(etc, 0o755); err != nil { //nolint:gosec // as in images
			return err
		}
		if err := writeSynced(filepath.Join(etc, f.name), f.content); err != nil {
			return err
		}
	}
	return nil
}

func writeSynced(path, content string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644) //nolint:gosec // every user of an image may read it
	if err != nil {
		return err
	}
	if _, err = f.WriteString(content); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
