// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/cdh"
	"github.com/coffer-cc/coffer/cdh/keywrap"
	"github.com/coffer-cc/coffer/imagepull/decompress"
	"github.com/coffer-cc/coffer/imagepull/layercrypt"
	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// The stages of a pull, each alone, from memory to memory but for the first
// and the last. Their CPU seconds make the floor.
const (
	stageFetch   = "fetch"
	stageDigest  = "digest of the blob"
	stageMAC     = "MAC"
	stageDecrypt = "decrypt"
	stagePlain   = "digest in the wrapped options"
	stageCrypt   = "the four in one pass (layercrypt)"
	stageInflate = "decompress"
	stageDiffID  = "diff id"
	stageApply   = "apply"

	// Not part of the floor: what they are compared with.
	otherInflate = "decompress with klauspost's gzip"
	otherApply   = "apply with containerd's archive.Apply"
)

func allStages() []string {
	return []string{
		stageFetch, stageDigest, stageMAC, stageDecrypt, stagePlain, stageCrypt,
		stageInflate, stageDiffID, stageApply, otherInflate, otherApply,
	}
}

// floorStages are those that the floor is made of. What is done to the bytes
// of the blob counts as the standard library does it, one after the other, or
// as layercrypt does it, whichever takes less.
func floorStages(stages []sample) []string {
	apart, apartCPU := []string{stageDigest, stageMAC, stageDecrypt, stagePlain}, 0.0
	for _, name := range apart {
		apartCPU += sum(stageCPU(stages, name))
	}
	if sum(stageCPU(stages, stageCrypt)) < apartCPU {
		apart = []string{stageCrypt}
	}
	return append(apart, stageFetch, stageInflate, stageDiffID, stageApply)
}

// Bytes go through a stage in blocks that stay in the processor's cache.
const (
	cryptoBlock = 16 << 10
	copyBlock   = 64 << 10
)

// stopwatch collects the CPU seconds of stages, layer by layer.
type stopwatch map[string][]float64

func (w stopwatch) time(stage string, work func() error) error {
	runtime.GC()
	before := allCPU()
	err := work()
	w[stage] = append(w[stage], (allCPU() - before).Seconds())
	if err != nil {
		return fmt.Errorf("%s: %w", stage, err)
	}
	return nil
}

// drain reads r to its end through a buffer of its own.
func drain(r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, copyBlock))
	return err
}

// blocks calls f with the bytes in blocks.
func blocks(b []byte, f func([]byte)) func() error {
	return func() error {
		for rest := b; len(rest) > 0; {
			n := min(cryptoBlock, len(rest))
			f(rest[:n])
			rest = rest[n:]
		}
		return nil
	}
}

// blobStages times what happens to the bytes of an encrypted image's blobs.
func blobStages(ctx context.Context, j job) (sample, error) {
	c, w := cache{j.Cache}, stopwatch{}
	manifest, _, err := c.readImage(j.Images[0])
	if err != nil {
		return sample{}, err
	}
	for _, layer := range manifest.Layers {
		if err := w.blob(ctx, c, j, layer); err != nil {
			return sample{}, err
		}
	}
	return sample{Stages: w}, nil
}

func (w stopwatch) blob(ctx context.Context, c cache, j job, layer ocispec.Descriptor) error {
	private, err := layerKey(ctx, layer)
	if err != nil {
		return err
	}
	block, err := aes.NewCipher(private.SymKey)
	if err != nil {
		return err
	}
	blob, err := os.ReadFile(c.blob(layer.Digest))
	if err != nil {
		return err
	}
	url := "http://" + j.Registry + "/v2/bench/" + j.Images[0] + "/blobs/" + layer.Digest.String()
	err = w.time(stageFetch, func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		return drain(resp.Body)
	})
	if err != nil {
		return err
	}
	err = w.crypt(blob, layer, private)
	hash, mac, plain := sha256.New(), hmac.New(sha256.New, private.SymKey), sha256.New()
	stream := cipher.NewCTR(block, private.CipherOptions["nonce"])
	err = errors.Join(err,
		w.time(stageDigest, blocks(blob, func(b []byte) { hash.Write(b) })),
		w.time(stageMAC, blocks(blob, func(b []byte) { mac.Write(b) })),
		w.time(stageDecrypt, blocks(blob, func(b []byte) { stream.XORKeyStream(b, b) })),
		w.time(stagePlain, blocks(blob, func(b []byte) { plain.Write(b) })),
	)
	if hexDigest(hash) != layer.Digest.String() || hexDigest(plain) != private.Digest {
		err = errors.Join(err, errors.New("a blob of the cache is damaged: remove .cache/bench"))
	}
	return err
}

// crypt times coffer's own pass over a blob.
func (w stopwatch) crypt(blob []byte, layer ocispec.Descriptor, private layercrypt.PrivateOptions) error {
	public, err := layercrypt.PublicOptionsOf(layer.Annotations)
	if err != nil {
		return err
	}
	r, err := layercrypt.NewReader(bytes.NewReader(blob), public, private)
	if err != nil {
		return err
	}
	return w.time(stageCrypt, func() error {
		if err := drain(r); err != nil {
			return err
		}
		return r.Verify(layercrypt.Expect{Digest: layer.Digest.String(), Size: layer.Size})
	})
}

func layerKey(ctx context.Context, layer ocispec.Descriptor) (layercrypt.PrivateOptions, error) {
	packets, err := layercrypt.KeyPackets(layer.Annotations)
	if err != nil {
		return layercrypt.PrivateOptions{}, err
	}
	hub := cdh.NewHub(localKeys{}, cdh.Options{})
	defer hub.Close()
	for _, p := range packets {
		if p.Scheme == keywrap.Scheme {
			raw, err := hub.UnwrapKey(ctx, p.Data)
			if err != nil {
				return layercrypt.PrivateOptions{}, err
			}
			return layercrypt.ParsePrivateOptions(raw)
		}
	}
	return layercrypt.PrivateOptions{}, errors.New("a layer has no wrapped key")
}

// tarStages times what makes tar streams of the blobs of a plain gzip image.
func tarStages(_ context.Context, j job) (sample, error) {
	c, w := cache{j.Cache}, stopwatch{}
	manifest, _, err := c.readImage(j.Images[0])
	if err != nil {
		return sample{}, err
	}
	for _, layer := range manifest.Layers {
		blob, err := os.ReadFile(c.blob(layer.Digest))
		if err != nil {
			return sample{}, err
		}
		tar, err := inflated(layer, blob)
		if err != nil {
			return sample{}, err
		}
		hash := sha256.New()
		err = errors.Join(
			w.time(stageInflate, func() error {
				r, err := decompress.NewReader(layer.MediaType, bytes.NewReader(blob))
				if err != nil {
					return err
				}
				return errors.Join(drain(r), r.Close())
			}),
			w.time(otherInflate, func() error {
				r, err := gzip.NewReader(bytes.NewReader(blob))
				if err != nil {
					return err
				}
				return errors.Join(drain(r), r.Close())
			}),
			w.time(stageDiffID, blocks(tar, func(b []byte) { hash.Write(b) })),
		)
		if err != nil {
			return sample{}, err
		}
	}
	return sample{Stages: w}, nil
}

func inflated(layer ocispec.Descriptor, blob []byte) ([]byte, error) {
	r, err := decompress.NewReader(layer.MediaType, bytes.NewReader(blob))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// applyStage times coffer's applier on the tars of a plain image.
func applyStage(ctx context.Context, j job) (sample, error) {
	applier := unpack.New(unpack.Options{})
	return applyAll(j, stageApply, func(dir string, r io.Reader) error {
		_, err := applier.Apply(ctx, dir, r)
		return err
	})
}

// referenceApply times containerd's.
func referenceApply(ctx context.Context, j job) (sample, error) {
	return applyAll(j, otherApply, func(dir string, r io.Reader) error {
		_, err := archive.Apply(ctx, dir, r, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
		return err
	})
}

func applyAll(j job, stage string, apply func(dir string, r io.Reader) error) (sample, error) {
	c, w := cache{j.Cache}, stopwatch{}
	manifest, _, err := c.readImage(j.Images[0])
	if err != nil {
		return sample{}, err
	}
	for i, layer := range manifest.Layers {
		blob, err := os.ReadFile(c.blob(layer.Digest))
		if err != nil {
			return sample{}, err
		}
		tar, err := inflated(layer, blob)
		if err != nil {
			return sample{}, err
		}
		dir := filepath.Join(j.Dir, strconv.Itoa(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return sample{}, err
		}
		if err := w.time(stage, func() error { return apply(dir, bytes.NewReader(tar)) }); err != nil {
			return sample{}, err
		}
	}
	return sample{Stages: w}, nil
}

// readImage reads an image's manifest and config.
func (c cache) readImage(name string) (m ocispec.Manifest, config ocispec.Image, err error) {
	d, err := c.find(name)
	if err != nil {
		return m, config, err
	}
	if err := c.readJSON(d, &m); err != nil {
		return m, config, err
	}
	return m, config, c.readJSON(m.Config.Digest, &config)
}

func (c cache) readJSON(d digest.Digest, into any) error {
	b, err := os.ReadFile(c.blob(d))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}
