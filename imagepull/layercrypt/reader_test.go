// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package layercrypt_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
)

// A sealed layer is what a publisher makes of a plain one.
type sealed struct {
	plain, blob []byte
	pub         layercrypt.PublicOptions
	priv        layercrypt.PrivateOptions
	open        openFunc // nil is layercrypt.NewReader
}

type (
	openFunc func(io.Reader, layercrypt.PublicOptions, layercrypt.PrivateOptions) (*layercrypt.Reader, error)
	sealFunc func(t testing.TB, size int) sealed
)

// passes are the readers that must all behave alike.
func passes() map[string]openFunc {
	return map[string]openFunc{"fastest": layercrypt.NewReader, "portable": layercrypt.NewPortableReader}
}

// onEachPass runs a test with layers that are read by each of the passes.
func onEachPass(t *testing.T, test func(t *testing.T, seal sealFunc)) {
	t.Helper()
	for name, open := range passes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, sealFor(open))
		})
	}
}

func sealFor(open openFunc) sealFunc {
	return func(t testing.TB, size int) sealed {
		t.Helper()
		s := seal(t, size)
		s.open = open
		return s
	}
}

func (s sealed) expect() layercrypt.Expect {
	return layercrypt.Expect{Digest: digestOf(s.blob), Size: int64(len(s.blob))}
}

func (s sealed) reader(t testing.TB, r io.Reader) *layercrypt.Reader {
	t.Helper()
	open := s.open
	if open == nil {
		open = layercrypt.NewReader
	}
	d, err := open(r, s.pub, s.priv)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func TestReadAndVerify(t *testing.T) {
	t.Parallel()
	onEachPass(t, func(t *testing.T, seal sealFunc) {
		for _, size := range []int{0, 1, 15, 16, 17, 16<<10 - 1, 16 << 10, 16<<10 + 1, 100_003} {
			s := seal(t, size)
			readers := map[string]func(io.Reader) io.Reader{
				"plain":    func(r io.Reader) io.Reader { return r },
				"one byte": iotest.OneByteReader,
				"half":     iotest.HalfReader,
				"data err": iotest.DataErrReader,
			}
			for name, wrap := range readers {
				t.Run(fmt.Sprintf("%d %s", size, name), func(t *testing.T) {
					t.Parallel()
					d := s.reader(t, wrap(bytes.NewReader(s.blob)))
					got, err := io.ReadAll(d)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, s.plain) {
						t.Error("plaintext differs")
					}
					for range 2 { // the verdict stays
						if err := d.Verify(s.expect()); err != nil {
							t.Error(err)
						}
					}
					if n, err := d.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
						t.Errorf("Read after Verify = %d, %v", n, err)
					}
				})
			}
		}
	})
}

func TestReaderIsAReader(t *testing.T) {
	t.Parallel()
	onEachPass(t, func(t *testing.T, seal sealFunc) {
		s := seal(t, 5000)
		if err := iotest.TestReader(s.reader(t, bytes.NewReader(s.blob)), s.plain); err != nil {
			t.Error(err)
		}
	})
}

func TestVerifyDrains(t *testing.T) {
	t.Parallel()
	onEachPass(t, func(t *testing.T, seal sealFunc) {
		s := seal(t, 200_000)
		d := s.reader(t, iotest.HalfReader(bytes.NewReader(s.blob)))
		if _, err := io.ReadFull(d, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		if err := d.Verify(s.expect()); err != nil {
			t.Error(err)
		}
	})
}

func TestSourceErrorIsNoVerdict(t *testing.T) {
	t.Parallel()
	onEachPass(t, func(t *testing.T, seal sealFunc) {
		s, gone := seal(t, 50_000), errors.New("connection reset")
		cut := func() *layercrypt.Reader {
			return s.reader(t, io.MultiReader(bytes.NewReader(s.blob[:30_000]), iotest.ErrReader(gone)))
		}

		d := cut()
		if _, err := io.ReadAll(d); !errors.Is(err, gone) {
			t.Errorf("Read: %v", err)
		}
		if _, err := d.Read(make([]byte, 1)); !errors.Is(err, gone) {
			t.Errorf("Read again: %v", err)
		}
		for name, d := range map[string]*layercrypt.Reader{"read": d, "unread": cut()} {
			if err := d.Verify(s.expect()); !errors.Is(err, gone) || errors.Is(err, layercrypt.ErrIntegrity) {
				t.Errorf("Verify of %s: %v", name, err)
			}
		}
	})
}

// An error that wraps io.EOF is not the end: nothing may be said of a layer that
// came in part.
func TestWrappedEndIsNoVerdict(t *testing.T) {
	t.Parallel()
	onEachPass(t, func(t *testing.T, seal sealFunc) {
		s, gone := seal(t, 50_000), fmt.Errorf("get blob: %w", io.EOF)
		d := s.reader(t, io.MultiReader(bytes.NewReader(s.blob[:30_000]), iotest.ErrReader(gone)))
		if err := d.Verify(s.expect()); err != gone { //nolint:errorlint // as it is
			t.Errorf("Verify of a part: %v", err)
		}
		d = s.reader(t, io.MultiReader(bytes.NewReader(s.blob), iotest.ErrReader(gone)))
		if err := d.Verify(s.expect()); err != gone { //nolint:errorlint // as it is
			t.Errorf("Verify of all: %v", err)
		}
	})
}

// badReader breaks the contract of io.Reader.
type badReader struct{ extra int }

func (r badReader) Read(p []byte) (int, error) {
	if r.extra < 0 {
		return r.extra, nil
	}
	return len(p) + r.extra, nil
}

// Nothing outside of the caller's buffer is touched, capacity or not.
func TestInvalidCounts(t *testing.T) {
	t.Parallel()
	onEachPass(t, func(t *testing.T, seal sealFunc) {
		for _, extra := range []int{-1, 1, 1000} {
			s := seal(t, 10)
			d := s.reader(t, badReader{extra})
			buf := make([]byte, 64)
			n, err := d.Read(buf[:32])
			if n != 0 || err == nil || !bytes.Equal(buf, make([]byte, 64)) {
				t.Errorf("a read of %d too many: Read = %d, %v", extra, n, err)
			}
			if got := d.Verify(s.expect()); !errors.Is(got, err) || errors.Is(got, layercrypt.ErrIntegrity) {
				t.Errorf("Verify: %v", got)
			}
		}
	})
}

type stuckReader struct{}

func (stuckReader) Read([]byte) (int, error) { return 0, nil }

func TestVerifyOfStuckSource(t *testing.T) {
	t.Parallel()
	onEachPass(t, func(t *testing.T, seal sealFunc) {
		s := seal(t, 10)
		if err := s.reader(t, stuckReader{}).Verify(s.expect()); !errors.Is(err, io.ErrNoProgress) {
			t.Error(err)
		}
	})
}

func TestMutations(t *testing.T) {
	t.Parallel()
	onEachPass(t, func(t *testing.T, seal sealFunc) {
		s := seal(t, 3*16<<10+7)
		swap := func(b []byte, i, j int) []byte {
			a, c := b[i*16:i*16+16], b[j*16:j*16+16]
			for k := range a {
				a[k], c[k] = c[k], a[k]
			}
			return b
		}
		flip := func(i int) func([]byte) []byte {
			return func(b []byte) []byte { b[i] ^= 1; return b }
		}
		for name, mutate := range map[string]func([]byte) []byte{
			"flip first":       flip(0),
			"flip in middle":   flip(len(s.blob) / 2),
			"flip at edge":     flip(16 << 10),
			"flip last":        flip(len(s.blob) - 1),
			"truncate by one":  func(b []byte) []byte { return b[:len(b)-1] },
			"truncate by 16":   func(b []byte) []byte { return b[:len(b)-16] },
			"truncate to none": func([]byte) []byte { return nil },
			"cut off start":    func(b []byte) []byte { return b[16:] },
			"extend":           func(b []byte) []byte { return append(b, 0) },
			"extend by itself": func(b []byte) []byte { return append(b, b...) },
			"swap neighbours":  func(b []byte) []byte { return swap(b, 4, 5) },
			"swap far":         func(b []byte) []byte { return swap(b, 0, 3000) },
			"repeat a block":   func(b []byte) []byte { copy(b[16:32], b[:16]); return b },
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				forged := mutate(bytes.Clone(s.blob))
				for what, want := range map[string]layercrypt.Expect{
					"manifest of the original": s.expect(),
					"manifest of the forgery":  {Digest: digestOf(forged), Size: int64(len(forged))},
				} {
					err := s.reader(t, bytes.NewReader(forged)).Verify(want)
					if !errors.Is(err, layercrypt.ErrIntegrity) {
						t.Errorf("%s: %v", what, err)
						continue
					}
					if !strings.Contains(err.Error(), "MAC") || !strings.Contains(err.Error(), "plaintext digest") {
						t.Errorf("%s: the error does not name the checks: %v", what, err)
					}
				}
			})
		}
	})
}

func TestEachCheckAlone(t *testing.T) {
	t.Parallel()
	onEachPass(t, func(t *testing.T, seal sealFunc) {
		other := "sha256:" + strings.Repeat("0", 64)
		for name, tc := range map[string]struct {
			change func(*sealed, *layercrypt.Expect)
			want   string
		}{
			"digest":    {func(_ *sealed, e *layercrypt.Expect) { e.Digest = other }, "ciphertext digest"},
			"no digest": {func(_ *sealed, e *layercrypt.Expect) { e.Digest = "" }, "ciphertext digest"},
			"size":      {func(_ *sealed, e *layercrypt.Expect) { e.Size++ }, "bytes"},
			"mac": {func(s *sealed, _ *layercrypt.Expect) {
				s.pub.HMAC = bytes.Clone(s.pub.HMAC)
				s.pub.HMAC[31] ^= 1
			}, "MAC"},
			"plaintext": {func(s *sealed, _ *layercrypt.Expect) { s.priv.Digest = other }, "plaintext digest"},
			"nonce": {func(s *sealed, _ *layercrypt.Expect) {
				s.priv.CipherOptions = map[string][]byte{"nonce": make([]byte, 16)}
			}, "plaintext digest"},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := seal(t, 100)
				want := s.expect()
				tc.change(&s, &want)
				err := s.reader(t, bytes.NewReader(s.blob)).Verify(want)
				if !errors.Is(err, layercrypt.ErrIntegrity) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), ";") {
					t.Errorf("error is %v, want only the %s to fail", err, tc.want)
				}
			})
		}
	})
}

func TestRecordedDiffID(t *testing.T) {
	t.Parallel()
	onEachPass(t, func(t *testing.T, seal sealFunc) {
		s := seal(t, 100)
		diffID := digestOf([]byte("the uncompressed tar"))
		s.priv.Digest = diffID
		want := s.expect()
		if err := s.reader(t, bytes.NewReader(s.blob)).Verify(want); !errors.Is(err, layercrypt.ErrIntegrity) {
			t.Errorf("without a diff id to compare: %v", err)
		}
		want.DiffID = diffID
		if err := s.reader(t, bytes.NewReader(s.blob)).Verify(want); err != nil {
			t.Errorf("with the diff id: %v", err)
		}
	})
}

func TestNoRecordedDigest(t *testing.T) {
	t.Parallel()
	onEachPass(t, func(t *testing.T, seal sealFunc) {
		s := seal(t, 100)
		s.priv.Digest = ""
		if err := s.reader(t, bytes.NewReader(s.blob)).Verify(s.expect()); err != nil {
			t.Error(err)
		}
	})
}

func TestReaderKeepsNoOptions(t *testing.T) {
	t.Parallel()
	onEachPass(t, func(t *testing.T, seal sealFunc) {
		s := seal(t, 1000)
		d := s.reader(t, bytes.NewReader(s.blob))
		want := s.expect()
		s.priv.Clear()
		clear(s.pub.HMAC)
		got, err := io.ReadAll(d)
		if err != nil || !bytes.Equal(got, s.plain) {
			t.Errorf("plaintext differs, error %v", err)
		}
		if err := d.Verify(want); err != nil {
			t.Error(err)
		}
	})
}

func TestReadDoesNotAllocate(t *testing.T) { //nolint:paralleltest // allocations are counted for the whole process
	for name, open := range passes() {
		t.Run(name, func(t *testing.T) {
			s := sealFor(open)(t, 64<<10)
			buf := make([]byte, 32<<10+7) // an odd one: blocks end where reads do not
			src := bytes.NewReader(s.blob)
			d := s.reader(t, src)
			allocs := testing.AllocsPerRun(100, func() {
				src.Reset(s.blob)
				if _, err := d.Read(buf); err != nil {
					t.Fatal(err)
				}
			})
			if allocs != 0 {
				t.Errorf("%v allocations per Read", allocs)
			}
		})
	}
}

func BenchmarkReader(b *testing.B) {
	for name, open := range passes() {
		for _, digest := range []bool{true, false} {
			for _, size := range []int{4 << 10, 64 << 10} {
				b.Run(fmt.Sprintf("%s/digest=%t/read=%dK", name, digest, size>>10), func(b *testing.B) {
					s := sealFor(open)(b, 8<<20)
					if !digest {
						s.priv.Digest = ""
					}
					benchmarkReader(b, s, make([]byte, size))
				})
			}
		}
	}
}

func benchmarkReader(b *testing.B, s sealed, buf []byte) {
	want := s.expect()
	b.SetBytes(int64(len(s.blob)))
	b.ReportAllocs()
	for b.Loop() {
		d := s.reader(b, bytes.NewReader(s.blob))
		var err error
		for err == nil {
			_, err = d.Read(buf)
		}
		if err := d.Verify(want); err != nil {
			b.Fatal(err)
		}
	}
}
