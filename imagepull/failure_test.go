// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containers/ocicrypt/blockcipher"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/layercrypt"
)

func containsAll(s string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(s, p) })
}

// checkFailure compares an error with what is expected of it, here and after it
// has gone over a wire.
func checkFailure(t *testing.T, err error, class func(error) bool, stage imagepull.Stage, texts ...string) {
	t.Helper()
	if err == nil || !class(err) || stageOf(err) != stage || !containsAll(err.Error(), texts...) {
		t.Errorf("stage %q: got %v", stageOf(err), err)
		return
	}
	if remote := errgrpc.ToNative(errgrpc.ToGRPC(err)); !class(remote) || !containsAll(remote.Error(), texts...) || strings.Contains(remote.Error(), "\n") {
		t.Errorf("over a wire: %v", remote)
	}
}

// TestRegistryFailures lets the middle one of three layers fail, and then heals.
func TestRegistryFailures(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault imagetest.Fault
		class func(error) bool
		tries int
		text  string
	}{
		"401":               {imagetest.Fault{Status: 401}, errdefs.IsUnauthorized, 1, "[registry] credentials"},
		"403":               {imagetest.Fault{Status: 403}, errdefs.IsPermissionDenied, 1, "[registry] credentials"},
		"404":               {imagetest.Fault{Status: 404}, errdefs.IsNotFound, 1, "blob sha256:"},
		"429":               {imagetest.Fault{Status: 429}, errdefs.IsUnavailable, 4, "gave up after 4 tries"},
		"429, far too long": {imagetest.Fault{Status: 429, RetryAfter: "3600"}, errdefs.IsUnavailable, 1, "it asks to wait 1h0m0s"},
		"500":               {imagetest.Fault{Status: 500}, errdefs.IsUnavailable, 4, "500 Internal Server Error"},
		"cut":               {imagetest.Fault{Cut: true, After: 20_000}, errdefs.IsUnavailable, 4, "gave up"},
		"stall":             {imagetest.Fault{Stall: true, After: 0}, errdefs.IsUnavailable, 4, "no byte came for 200ms"},
	} {
		for _, encrypted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/encrypted=%v", name, encrypted), func(t *testing.T) {
				t.Parallel()
				e, p := threeLayers(t, encrypted)
				failing := p.Layers[1].Digest.String()
				e.registry.Fail(failing, tc.fault)
				err := e.top(p)
				checkFailure(t, err, tc.class, imagepull.StageFetch, "registry "+e.registry.Host()+": ", tc.text)
				if got := len(e.registry.Requests(failing)); got != tc.tries {
					t.Errorf("%d tries, want %d", got, tc.tries)
				}
				e.clean(p, 1)
				e.registry.Heal()
				if err := e.top(p); err != nil {
					t.Fatalf("after the cause was gone: %v", err)
				}
				e.has(p)
			})
		}
	}
}

func threeLayers(t *testing.T, encrypted bool) (*env, imagetest.Pushed) {
	t.Helper()
	key := imagetest.NewKey(t, kid)
	e := newEnv(t, newKeyring(key), nil)
	l := imagetest.Layer{Random: 150_000, Compression: imagetest.Gzip}
	if encrypted {
		l.Key = &key
	}
	return e, e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{l, l, l}})
}

func TestResolveFailures(t *testing.T) {
	t.Parallel()
	e, p := threeLayers(t, false)
	e.registry.Fail("*", imagetest.Fault{Status: 401})
	checkFailure(t, e.top(p), errdefs.IsUnauthorized, imagepull.StageResolve, "registry "+e.registry.Host(), "credentials")
	e.registry.Heal()
	e.registry.Away()
	checkFailure(t, e.top(p), errdefs.IsUnavailable, imagepull.StageResolve, "connection refused", "gave up after 4 tries")
	e.registry.Back(t)
	e.registry.Fail("*", imagetest.Fault{Status: 503, Times: 2, RetryAfter: "0"})
	if err := e.top(p); err != nil {
		t.Errorf("two passing failures: %v", err)
	}
}

// TestResume cuts a download again and again; each byte is served once.
func TestResume(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	// What stalls for want of a processor would be served twice.
	e := newEnvStall(t, newTmpfs(t, "256m"), 3*time.Second, newKeyring(key), nil)
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{Key: &key, Random: 9 << 20, Compression: imagetest.Zstd}}})
	l := p.Layers[0]
	for _, after := range []int64{1, 4 << 20, 3<<20 + 12345} {
		e.registry.Fail(l.Digest.String(), imagetest.Fault{Cut: true, After: after, Times: 1})
	}
	e.registry.Fail(l.Digest.String(), imagetest.Fault{Status: 429, RetryAfter: "0", Times: 1})
	e.registry.Fail(l.Digest.String(), imagetest.Fault{Stall: true, After: 1000, Times: 1})
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	e.has(p)
	var served int64
	for _, r := range e.registry.Requests(l.Digest.String()) {
		if r.Status < 400 {
			served += r.Served
		}
	}
	if served != l.Size {
		t.Errorf("%d bytes were served, the blob has %d: %+v", served, l.Size, e.registry.Requests(l.Digest.String()))
	}
	if got := e.keys.count(); got != 1 {
		t.Errorf("%d unwraps", got)
	}
}

func TestResumeWithoutRanges(t *testing.T) {
	t.Parallel()
	e, p := threeLayers(t, true)
	d := p.Layers[1].Digest.String()
	e.registry.Fail(d, imagetest.Fault{Cut: true, After: 100_000, Times: 1})
	e.registry.Fail(d, imagetest.Fault{IgnoreRange: true, Chunked: true})
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	e.has(p)
}

// TestCutAtTheEnd has all bytes come, and then no end.
func TestCutAtTheEnd(t *testing.T) {
	t.Parallel()
	e, p := threeLayers(t, true)
	l := p.Layers[1]
	e.registry.Replace("a/b", l.Digest, func(b []byte) []byte { return append(b, 0) })
	e.registry.Fail(l.Digest.String(), imagetest.Fault{Cut: true, After: l.Size, Chunked: true})
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	e.has(p)
	if n := len(e.registry.Requests(l.Digest.String())); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestForgedBlobs changes what the registry has for the middle layer.
func TestForgedBlobs(t *testing.T) {
	t.Parallel()
	flip := func(at float64) func([]byte) []byte {
		return func(b []byte) []byte { b[int(at*float64(len(b)-1))] ^= 1; return b }
	}
	for name, edit := range map[string]func([]byte) []byte{
		"first byte":  flip(0),
		"middle byte": flip(0.5),
		"last byte":   flip(1),
		"truncated":   func(b []byte) []byte { return b[:len(b)-1] },
		"cut in half": func(b []byte) []byte { return b[:len(b)/2] },
		"empty":       func([]byte) []byte { return []byte{} },
		"extended":    func(b []byte) []byte { return append(b, 0) },
		"reordered":   func(b []byte) []byte { return slices.Concat(b[65536:131072], b[:65536], b[131072:]) },
		"swapped bytes": func(b []byte) []byte {
			b[10], b[11] = b[11]^1, b[10]
			return b
		},
	} {
		for _, compression := range []imagetest.Compression{imagetest.None, imagetest.Gzip, imagetest.Zstd} {
			for _, mode := range []string{"plain", "encrypted", "encrypted, chunked"} {
				t.Run(fmt.Sprintf("%s/%s/%s", name, compression, mode), func(t *testing.T) {
					t.Parallel()
					key := imagetest.NewKey(t, kid)
					e := newEnv(t, newKeyring(key), nil)
					l := imagetest.Layer{Random: 150_000, Compression: compression}
					if mode != "plain" {
						l.Key = &key
					}
					p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{l, l, l}})
					forged := p.Layers[1].Digest
					e.registry.Replace("a/b", forged, edit)
					if mode == "encrypted, chunked" { // no length gives it away
						e.registry.Fail(forged.String(), imagetest.Fault{Chunked: true})
					}
					err := e.top(p)
					if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), forged.String()) {
						t.Errorf("got %v", err)
					}
					if name == "extended" && mode == "encrypted, chunked" && !containsAll(err.Error(), "sends more than") {
						t.Errorf("it was read beyond its size: %v", err)
					}
					if s := stageOf(err); s != imagepull.StageVerify && s != imagepull.StageFetch {
						t.Errorf("at stage %s: %v", s, err)
					}
					e.clean(p, 1)
					e.registry.Heal()
					e.registry.Replace("a/b", forged, nil)
					if err := e.top(p); err != nil {
						t.Fatalf("after the true blob was back: %v", err)
					}
					e.has(p)
				})
			}
		}
	}
}

// TestBrokenImages are wrong as they were published: a retry cannot help.
func TestBrokenImages(t *testing.T) {
	t.Parallel()
	key, other := imagetest.NewKey(t, kid), imagetest.NewKey(t, kid)
	for name, tc := range map[string]struct {
		layer imagetest.Layer
		class func(error) bool
		stage imagepull.Stage
		text  string
	}{
		"wrong diff id":            {imagetest.Layer{WrongDiffID: true, Compression: imagetest.Gzip}, errdefs.IsDataLoss, imagepull.StageVerify, "diff id"},
		"wrong diff id, encrypted": {imagetest.Layer{WrongDiffID: true, Key: &key}, errdefs.IsDataLoss, imagepull.StageVerify, "diff id"},
		"wrong key":                {imagetest.Layer{Key: &other}, errdefs.IsDataLoss, imagepull.StageUnwrap, "does not unwrap"},
		"no tar":                   {imagetest.Layer{Tar: bytes.Repeat([]byte("no tar"), 1000), Key: &key}, errdefs.IsInvalidArgument, imagepull.StageApply, "tar"},
		"unknown type": {imagetest.Layer{Edit: func(d *ocispec.Descriptor) { d.MediaType = "application/vnd.example.layer" }},
			errdefs.IsNotImplemented, imagepull.StageDecompress, "vnd.example.layer"},
		"not what its type says": {imagetest.Layer{Edit: func(d *ocispec.Descriptor) { d.MediaType += "+zstd" }},
			errdefs.IsInvalidArgument, imagepull.StageDecompress, "zstd"},
		"no public options": {imagetest.Layer{Key: &key, Edit: func(d *ocispec.Descriptor) { delete(d.Annotations, "org.opencontainers.image.enc.pubopts") }},
			errdefs.IsInvalidArgument, imagepull.StageUnwrap, "pubopts"},
		"no packets": {imagetest.Layer{Key: &key, Edit: func(d *ocispec.Descriptor) {
			delete(d.Annotations, "org.opencontainers.image.enc.keys.provider.attestation-agent")
		}}, errdefs.IsInvalidArgument, imagepull.StageUnwrap, "coffer encrypt --to kbs:///"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, newKeyring(key), nil)
			p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, tc.layer, {}}})
			for range 2 {
				checkFailure(t, e.top(p), tc.class, tc.stage, tc.text)
				e.clean(p, 1)
			}
			// A caller of a layer that did not fail hears why there is none.
			_, err := e.pull(t.Context(), p, p.Layers[2].ChainID)
			checkFailure(t, err, tc.class, tc.stage, p.Layers[1].Digest.String())
		})
	}
}

// TestForgedKeys has keys that unwrap and do not fit the layer, in all ways.
func TestForgedKeys(t *testing.T) {
	t.Parallel()
	type private = blockcipher.PrivateLayerBlockCipherOptions
	for name, tc := range map[string]struct {
		private func(*private)
		public  func(map[string]any)
		text    string
		packed  bool // only for compressed layers
	}{
		"another layer key": {private: func(p *private) { p.SymmetricKey[0] ^= 1 }, text: "MAC does not match"},
		"another MAC":       {public: func(p map[string]any) { p["hmac"] = bytes.Repeat([]byte{1}, 32) }, text: "MAC does not match"},
		// The MAC holds in these two: only the wrapped digest tells. That of an
		// uncompressed layer is its diff id, which is verified last.
		"another nonce": {private: func(p *private) { p.CipherOptions["nonce"][15] ^= 1 }, text: "plaintext digest does not match", packed: true},
		"content by another recipient": {private: func(p *private) { p.Digest = digest.FromString("what the publisher encrypted") },
			text: "plaintext digest does not match"},
	} {
		for _, compression := range []imagetest.Compression{imagetest.None, imagetest.Gzip, imagetest.Zstd} {
			if tc.packed && compression == imagetest.None {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", name, compression), func(t *testing.T) {
				t.Parallel()
				key := imagetest.NewKey(t, kid)
				e := newEnv(t, newKeyring(key), nil)
				l := imagetest.Layer{Key: &key, Compression: compression, Random: 200_000, EditPrivate: tc.private}
				if tc.public != nil {
					l.Edit = func(d *ocispec.Descriptor) { editPublic(t, d, tc.public) }
				}
				p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, l, {}}})
				checkFailure(t, e.top(p), errdefs.IsDataLoss, imagepull.StageVerify, tc.text, p.Layers[1].Digest.String(), "push the image again")
				e.clean(p, 1)
			})
		}
	}
}

// editPublic changes the public options of a layer.
func editPublic(t *testing.T, d *ocispec.Descriptor, edit func(map[string]any)) {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(d.Annotations[layercrypt.PublicOptionsKey])
	if err != nil {
		t.Fatal(err)
	}
	var public map[string]any
	if err := json.Unmarshal(raw, &public); err != nil {
		t.Fatal(err)
	}
	edit(public)
	if raw, err = json.Marshal(public); err != nil {
		t.Fatal(err)
	}
	d.Annotations[layercrypt.PublicOptionsKey] = base64.StdEncoding.EncodeToString(raw)
}

func TestKeyFailures(t *testing.T) {
	t.Parallel()
	for name, class := range map[string]error{
		"denied":           errdefs.ErrPermissionDenied,
		"away":             errdefs.ErrUnavailable,
		"not there":        errdefs.ErrNotFound,
		"evidence refused": errdefs.ErrUnauthenticated,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, p := threeLayers(t, true)
			e.keys.hook = func(context.Context, string) error { return fmt.Errorf("kbs http://kbs: %s: %w", name, class) }
			is := func(err error) bool { return errors.Is(err, class) }
			checkFailure(t, e.top(p), is, imagepull.StageUnwrap, "kbs http://kbs: "+name)
			e.clean(p, 0)
			e.keys.hook = nil
			if err := e.top(p); err != nil {
				t.Errorf("after the cause was gone: %v", err)
			}
			e.has(p)
		})
	}
}

// TestKeyDeniedWhileRegistryStalls is about whose error comes first.
func TestKeyDeniedWhileRegistryStalls(t *testing.T) {
	t.Parallel()
	e, p := threeLayers(t, true)
	blob := p.Layers[0].Digest.String()
	e.registry.Fail(blob, imagetest.Fault{Stall: true})
	e.keys.hook = func(ctx context.Context, _ string) error {
		select {
		case <-e.registry.Began(blob):
		case <-ctx.Done():
			return ctx.Err()
		}
		return errdefs.ErrPermissionDenied.WithMessage("kbs: denied")
	}
	checkFailure(t, e.top(p), errdefs.IsPermissionDenied, imagepull.StageUnwrap, "kbs: denied")
	e.clean(p, 0)
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	root := newTmpfs(t, "4m")
	key := imagetest.NewKey(t, kid)
	e := newEnvAt(t, root, newKeyring(key), nil)
	zeros := strings.Repeat("0", 6<<20) // small while it is compressed
	p := e.registry.Push(t, "a/zeros:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {Key: &key, Compression: imagetest.Gzip, Files: map[string]string{"zeros": zeros}}}})
	checkFailure(t, e.top(p), errdefs.IsResourceExhausted, imagepull.StageApply, "out of space in "+root, "image.work_dir")
	e.clean(p, 1)
	p = e.registry.Push(t, "a/large:v1", imagetest.Image{Layers: []imagetest.Layer{{Random: 3 << 20}, {Random: 3 << 20}}})
	checkFailure(t, e.top(p), errdefs.IsResourceExhausted, imagepull.StageResolve, "out of space in "+root)
	if n := len(e.registry.Requests(p.Layers[0].Digest.String())); n != 0 {
		t.Error("it was fetched although it cannot fit")
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_REMOUNT, "size=32m"); err != nil {
		t.Fatal(err)
	}
	if err := e.top(p); err != nil {
		t.Errorf("after there was room: %v", err)
	}
	e.has(p)
}

func TestSameLayerTwice(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), nil)
	first := e.registry.Push(t, "a/one:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
	again := imagetest.Layer{Tar: first.Layers[0].Tar}
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{again, {}, again}})
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	e.has(p)
	if p.Layers[0].ChainID == p.Layers[2].ChainID || p.Layers[0].Digest != p.Layers[2].Digest {
		t.Error("the test does not repeat a layer")
	}
}
