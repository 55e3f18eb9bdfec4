// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Tar builds a layer's tar stream. The first error sticks, and Bytes reports it.
type Tar struct {
	buf bytes.Buffer
	w   *tar.Writer
	err error
}

// NewTar starts an empty tar stream.
func NewTar() *Tar {
	b := &Tar{}
	b.w = tar.NewWriter(&b.buf)
	return b
}

// Dir adds a folder.
func (b *Tar) Dir(name string, mode int64) {
	b.add(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil)
}

// File adds a file that root owns.
func (b *Tar) File(name string, mode int64, content []byte) {
	b.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}, content)
}

// Symlink adds a symbolic link.
func (b *Tar) Symlink(name, target string) {
	b.add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

func (b *Tar) add(h *tar.Header, content []byte) {
	if b.err != nil {
		return
	}
	h.ModTime = time.Unix(1_700_000_000, 0)
	if b.err = b.w.WriteHeader(h); b.err == nil {
		_, b.err = b.w.Write(content)
	}
}

// Busybox adds Debian's static busybox under the given name.
func (b *Tar) Busybox(name string) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		b.err = fmt.Errorf("find a static busybox: %w (install busybox-static)", err)
		return
	}
	program, err := os.ReadFile(path)
	if err != nil {
		b.err = err
		return
	}
	b.File(name, 0o755, program)
}

// system adds the least that a test's container needs.
func (b *Tar) system() {
	b.Dir("bin", 0o755)
	b.Busybox("bin/busybox")
	for applet := range strings.FieldsSeq("sh cat ls echo sleep stat sha256sum true false id test") {
		b.Symlink("bin/"+applet, "busybox")
	}
	b.Dir("etc", 0o755)
	b.File("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"))
	b.File("etc/group", 0o644, []byte("root:x:0:\nuser:x:1000:\nstaff:x:50:user\n"))
	b.Dir("tmp", 0o1777)
}

// Bytes ends the stream.
func (b *Tar) Bytes() ([]byte, error) {
	return b.buf.Bytes(), errors.Join(b.err, b.w.Close())
}
