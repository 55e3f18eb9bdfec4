// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path"
	"strings"
	"time"
)

// shape says what a layer is like.
type shape struct {
	Prefix string  // the directory that all is in
	Files  int     // regular files
	Bytes  int     // of content, in all
	Spread float64 // of file sizes: sigma of their logarithms; 0 makes all alike
	Text   int     // files of text, in percent
	Noise  int     // files that do not compress, in percent; the rest is code
	PerDir int     // files in a directory
	// Hide is how many files of the layer below are whited out, and how many
	// of its directories become opaque: a tenth of it.
	Hide  int
	Below *shape // with Hide
}

// realImage is six layers as an image for a language runtime has them:
// system, interpreter, modules, shared files, compilers, application.
func realImage() []shape {
	layers := []shape{
		{Prefix: "usr/lib/system", Files: 1500, Bytes: 58e6, Spread: 1.6, Text: 25, Noise: 9, PerDir: 40},
		{Prefix: "usr/lib/interpreter", Files: 5000, Bytes: 68e6, Spread: 1.2, Text: 62, Noise: 7, PerDir: 25},
		{Prefix: "opt/modules", Files: 9000, Bytes: 74e6, Spread: 1.3, Text: 82, Noise: 7, PerDir: 9},
		{Prefix: "usr/share", Files: 12500, Bytes: 62e6, Spread: 1.2, Text: 80, Noise: 13, PerDir: 18},
		{Prefix: "usr/lib/compiler", Files: 1200, Bytes: 137e6, Spread: 1.9, Text: 20, Noise: 9, PerDir: 60},
		{Prefix: "srv/app", Files: 800, Bytes: 7e6, Spread: 1.0, Text: 70, Noise: 14, PerDir: 20, Hide: 120},
	}
	layers[5].Below = &layers[2]
	return layers
}

// bulk is one layer of n bytes of content in 16 files, half of it text.
func bulk(n int) shape {
	return shape{Prefix: "data", Files: 16, Bytes: n, Text: 50, PerDir: 16}
}

// generator writes layers: the same seed and shape give the same bytes.
type generator struct {
	prose   *prose
	machine *machine
}

func newGenerator() *generator {
	p := newProse(1)
	return &generator{prose: p, machine: newMachine(1, p)}
}

// chunk is how many bytes of a file are made at a time.
const chunk = 1 << 20

// write writes the tar of a layer.
func (g *generator) write(out io.Writer, s shape, seed uint64) error {
	l := &layerWriter{g: g, w: tar.NewWriter(out), r: rand.New(rand.NewPCG(seed, 3)), made: make(map[string]bool)}
	sizes := s.sizes(rand.New(rand.NewPCG(seed, 4)))
	for i, size := range sizes {
		l.file(s, i, size)
	}
	if s.Hide > 0 {
		l.hide(s)
	}
	if l.err != nil {
		return l.err
	}
	return l.w.Close()
}

// sizes draws the sizes of the files; their sum is Bytes.
func (s shape) sizes(r *rand.Rand) []int {
	weights, sum := make([]float64, s.Files), 0.0
	for i := range weights {
		weights[i] = math.Exp(s.Spread * r.NormFloat64())
		sum += weights[i]
	}
	sizes := make([]int, s.Files)
	for i := range sizes {
		sizes[i] = int(weights[i] / sum * float64(s.Bytes))
	}
	return sizes
}

// dir is the directory of the i-th file: three levels.
func (s shape) dir(i int) string {
	n := i / s.PerDir
	return path.Join(s.Prefix, fmt.Sprintf("group%02d", n/24), fmt.Sprintf("part-%d.%d", n%24, n))
}

func (s shape) name(i int) string {
	return path.Join(s.dir(i), fmt.Sprintf("file_%05d.%s", i, []string{"so", "py", "txt", "h", "json", "o"}[i%6]))
}

// layerWriter writes one layer. The first error sticks.
type layerWriter struct {
	g    *generator
	w    *tar.Writer
	r    *rand.Rand
	made map[string]bool // directories
	buf  []byte
	err  error
}

// file writes a file, after its directories, and now and then a link to it.
func (l *layerWriter) file(s shape, i, size int) {
	name := s.name(i)
	l.parents(name)
	mode := l.mode()
	l.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(size)})
	kind := l.r.IntN(100)
	for size > 0 && l.err == nil {
		n := min(size, chunk)
		size -= n
		switch b := l.buf[:0]; {
		case kind < s.Text:
			l.buf = l.g.prose.write(b, n, l.r)
		case kind < s.Text+s.Noise:
			l.buf = noise(b, n, l.r)
		default:
			l.buf = l.g.machine.write(b, n, l.r)
		}
		_, l.err = l.w.Write(l.buf)
	}
	switch l.r.IntN(50) {
	case 0, 1, 2:
		l.header(&tar.Header{Typeflag: tar.TypeSymlink, Name: name + ".latest", Linkname: path.Base(name), Mode: 0o777})
	case 3:
		l.header(&tar.Header{Typeflag: tar.TypeLink, Name: name + ".link", Linkname: name, Mode: mode})
	}
}

// mode draws one as they are spread in a system: of a hundred files 72 are
// plain, 25 programs, 2 private, 1 is set-uid.
func (l *layerWriter) mode() int64 {
	switch n := l.r.IntN(100); {
	case n < 72:
		return 0o644
	case n < 97:
		return 0o755
	case n < 99:
		return 0o600
	default:
		return 0o4755
	}
}

// hide writes whiteouts of files of the layer below, and makes some of its
// directories opaque, with a file of their own.
func (l *layerWriter) hide(s shape) {
	for k := range s.Hide {
		i := k * s.Below.Files / s.Hide
		dir := s.Below.dir(i)
		name := path.Join(dir, ".wh."+path.Base(s.Below.name(i)))
		if k%10 == 0 {
			name = path.Join(dir, ".wh..wh..opq")
		}
		l.parents(name)
		l.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644})
		if k%10 == 0 {
			l.header(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(dir, "instead"), Mode: 0o644})
		}
	}
}

func (l *layerWriter) parents(name string) {
	dir, _ := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if dir == "" || l.made[dir] {
		return
	}
	l.parents(dir)
	l.made[dir] = true
	l.header(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755})
}

func (l *layerWriter) header(h *tar.Header) {
	if l.err != nil {
		return
	}
	h.ModTime = time.Unix(1_700_000_000+int64(l.r.IntN(30_000_000)), 0)
	if h.Typeflag == tar.TypeReg && l.r.IntN(20) == 0 {
		h.Uid, h.Gid = 1000, 1000
	}
	l.err = l.w.WriteHeader(h)
}
