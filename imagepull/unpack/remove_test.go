// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A directory is empty when reading it has come to its end, and not when a read
// brings no names: one that a signal cuts short, as Go's own do, may bring only
// "." and "..". A buffer with room for these two alone cuts each read likewise.
func TestRemoveReadsToTheEnd(t *testing.T) {
	t.Parallel()
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	src := &source{ctx: t.Context(), r: strings.NewReader(""), limit: 1}
	l := newLayer(int(root.Fd()), src, Options{}.orDefaults())
	defer l.open.close()

	if err := os.Mkdir(filepath.Join(root.Name(), "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := os.WriteFile(filepath.Join(root.Name(), "d", fmt.Sprint("f", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.root.add("d")
	l.buf = l.buf[:48]
	if err := l.remove(l.root, "d"); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(root.Name()); err != nil || len(left) > 0 {
		t.Errorf("%v, %v are left", left, err)
	}
}
