// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"archive/tar"
	"errors"
	"io"
	"path"
	"strings"

	"github.com/coffer-cc/coffer/imagepull/decompress"
)

// maxAccountFile is how long an /etc/passwd or /etc/group may be, in bytes.
const maxAccountFile = 1 << 20

// layerAccounts is what one layer does to the files of users and groups.
type layerAccounts struct{ passwd, group layerFile }

// layerFile is what a layer does to a file.
type layerFile struct {
	hides   bool // what lower layers have is not seen
	content string
}

func (f layerFile) over(lower string) string {
	if f.hides {
		return f.content
	}
	return lower
}

// scan looks into a layer on its way into encryption.
type scan struct {
	w    *io.PipeWriter
	done chan layerAccounts
}

func newScan(mediaType string) *scan {
	r, w := io.Pipe()
	s := &scan{w: w, done: make(chan layerAccounts, 1)}
	go func() {
		found, err := scanLayer(mediaType, r)
		if err != nil {
			// Whoever runs the image says what is wrong with the layer.
			found = layerAccounts{}
		}
		_, _ = io.Copy(io.Discard, r) // r fails only as the reader of the layer did
		s.done <- found
	}()
	return s
}

// end returns what was found, after all that was written.
func (s *scan) end() layerAccounts {
	_ = s.w.Close() // never fails
	return <-s.done
}

func scanLayer(mediaType string, blob io.Reader) (found layerAccounts, err error) {
	plain, err := decompress.NewReader(mediaType, blob)
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	for entries := tar.NewReader(plain); ; {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return found, err
		}
		if err := found.entry(h, entries); err != nil {
			return found, err
		}
	}
}

// entry takes one entry of the layer's tar.
func (a *layerAccounts) entry(h *tar.Header, body io.Reader) error {
	const whiteout, opaque = ".wh.", ".wh..wh..opq"
	files := map[string]*layerFile{"/etc/passwd": &a.passwd, "/etc/group": &a.group}
	name := path.Clean("/" + h.Name)
	dir, base := path.Split(name)
	switch {
	case base == opaque && (dir == "/" || dir == "/etc/"), name == "/.wh.etc":
		a.passwd.hides, a.group.hides = true, true
	case name == "/etc" && h.Typeflag != tar.TypeDir:
		*a = layerAccounts{passwd: layerFile{hides: true}, group: layerFile{hides: true}}
	case strings.HasPrefix(base, whiteout):
		if f := files[path.Join(dir, strings.TrimPrefix(base, whiteout))]; f != nil {
			f.hides = true
		}
	case files[name] != nil:
		f := files[name]
		*f = layerFile{hides: true}
		if h.Typeflag != tar.TypeReg || h.Size > maxAccountFile {
			return nil // a link or more: nothing is told of it
		}
		content, err := io.ReadAll(body)
		f.content = string(content)
		return err
	}
	return nil
}
