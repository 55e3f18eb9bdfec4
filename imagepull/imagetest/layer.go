// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containers/ocicrypt/blockcipher"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/cdh/keywrap"
)

const (
	pubOptsKey = "org.opencontainers.image.enc.pubopts"
	dockerTar  = "application/vnd.docker.image.rootfs.diff.tar"
)

// Key is a key-encryption key and the URI under which a KBS has it.
type Key struct {
	KEK []byte
	KID string
}

// NewKey makes a random key for kid, such as kbs:///default/key/1.
func NewKey(t testing.TB, kid string) Key {
	t.Helper()
	return Key{KEK: random(t, keywrap.KEKSize), KID: kid}
}

// Compression of a layer.
type Compression string

// The compressions of the OCI media types.
const (
	None Compression = ""
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

// Layer says how to build one layer; what is left out is made up.
type Layer struct {
	// Files by path; a path that ends in / is a directory.
	Files map[string]string
	// Tar is the whole archive and replaces Files.
	Tar []byte
	// Random adds one file of so many incompressible bytes.
	Random int

	Compression Compression
	// Key encrypts the layer for this key; Keys for several, in this order.
	Key  *Key
	Keys []Key
	// Docker and NonDistributable choose other media types of the same form.
	Docker, NonDistributable bool

	// EditPrivate changes the private options before they are wrapped.
	EditPrivate func(*blockcipher.PrivateLayerBlockCipherOptions)
	// WrongDiffID puts another diff id into the config than the content has.
	WrongDiffID bool
	// Edit changes the descriptor before it is put into the manifest.
	Edit func(*ocispec.Descriptor)
}

// Built is a layer as it was pushed.
type Built struct {
	ocispec.Descriptor
	// Blob is what the registry has, Plain the compressed archive, Tar the
	// archive.
	Blob, Plain, Tar        []byte
	DiffID, ChainID, Parent digest.Digest
}

func (l Layer) build(t testing.TB) Built {
	t.Helper()
	b := Built{Tar: l.Tar}
	if b.Tar == nil {
		b.Tar = l.archive(t)
	}
	b.DiffID = digest.FromBytes(b.Tar)
	if l.WrongDiffID {
		b.DiffID = digest.FromBytes(random(t, 16))
	}
	b.Plain = compress(t, b.Tar, l.Compression)
	b.Blob, b.MediaType = b.Plain, l.mediaType()
	if keys := l.keys(); len(keys) > 0 {
		b.MediaType += "+encrypted"
		b.Blob, b.Annotations = l.encrypt(t, b.Plain, keys)
	}
	b.Digest, b.Size = digest.FromBytes(b.Blob), int64(len(b.Blob))
	if l.Edit != nil {
		l.Edit(&b.Descriptor)
	}
	return b
}

func (l Layer) keys() []Key {
	if l.Key != nil {
		return append([]Key{*l.Key}, l.Keys...)
	}
	return l.Keys
}

func (l Layer) mediaType() string {
	mt, plus := ocispec.MediaTypeImageLayer, "+"
	switch {
	case l.Docker && l.NonDistributable:
		mt, plus = strings.Replace(dockerTar, "diff", "foreign.diff", 1), "."
	case l.Docker:
		mt, plus = dockerTar, "."
	case l.NonDistributable:
		mt = ocispec.MediaTypeImageLayerNonDistributable //nolint:staticcheck // old images have it
	}
	if l.Compression != None {
		mt += plus + string(l.Compression)
	}
	return mt
}

// archive makes the tar of Files, sorted, with a file no other layer has.
func (l Layer) archive(t testing.TB) []byte {
	t.Helper()
	files := maps.Clone(l.Files)
	if files == nil {
		files = make(map[string]string)
	}
	files["unique-"+digest.FromBytes(random(t, 16)).Encoded()[:12]] = string(random(t, max(l.Random, 16)))
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name])), ModTime: time.Unix(1700000000, 0)}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o755, 0
		}
		must(t, w.WriteHeader(h))
		if h.Typeflag == tar.TypeReg {
			_, err := io.WriteString(w, files[name])
			must(t, err)
		}
	}
	must(t, w.Close())
	return buf.Bytes()
}

func compress(t testing.TB, b []byte, c Compression) []byte {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch c {
	case None:
		return b
	case Gzip:
		w = gzip.NewWriter(&buf)
	case Zstd:
		enc, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
		must(t, err)
		w = enc
	default:
		t.Fatalf("imagetest: unknown compression %q", c)
	}
	_, err := w.Write(b)
	must(t, err)
	must(t, w.Close())
	return buf.Bytes()
}

// encrypt is ocicrypt's cipher with one annotation packet for each key.
func (l Layer) encrypt(t testing.TB, plain []byte, keys []Key) ([]byte, map[string]string) {
	t.Helper()
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	must(t, err)
	r, finish, err := handler.Encrypt(bytes.NewReader(plain), blockcipher.AES256CTR)
	must(t, err)
	blob, err := io.ReadAll(r)
	must(t, err)
	opts, err := finish()
	must(t, err)
	opts.Private.Digest = digest.FromBytes(plain)
	if l.EditPrivate != nil {
		l.EditPrivate(&opts.Private)
	}
	private, err := json.Marshal(opts.Private)
	must(t, err)
	public, err := json.Marshal(opts.Public)
	must(t, err)
	packets := make([]string, len(keys))
	for i, k := range keys {
		p, err := keywrap.Wrap(k.KEK, k.KID, private, rand.Reader)
		must(t, err)
		raw, err := p.Marshal()
		must(t, err)
		packets[i] = base64.StdEncoding.EncodeToString(raw)
	}
	return blob, map[string]string{
		keywrap.AnnotationKey: strings.Join(packets, ","),
		pubOptsKey:            base64.StdEncoding.EncodeToString(public),
	}
}

func random(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	_, err := rand.Read(b)
	must(t, err)
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("imagetest: %v", err)
	}
}
