// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ImageOptions says what a test image is made of. Every image differs from
// every other in each layer, so that no chain id is shared by chance.
type ImageOptions struct {
	// Layers is the number of layers above the one with busybox; 0 = 2.
	Layers int
	// LayerBytes is the size of each layer's random content, the lowest one's
	// too; 0 = 64 KiB.
	LayerBytes int
	// ZeroBytes is the size of a file of zeros in the top layer, which makes
	// it far larger than its blob; 0 = none.
	ZeroBytes int
	// Compressions are used in turn, from the lowest layer on; nil = gzip.
	Compressions []Compression
	// Command is the image's default command, and User its USER: "user" is one
	// of its names, with the groups "user" and "staff".
	Command []string
	User    string
}

// Image is a test image.
type Image struct {
	v1.Image
	// Secret is a text that only this image has, in the file /secret of its
	// top layer.
	Secret string
}

// NewImage makes an image of busybox and random files: /data/N in the N-th
// layer, and Secret in /secret.
func NewImage(opts ImageOptions) (*Image, error) {
	if opts.Layers == 0 {
		opts.Layers = 2
	}
	if opts.LayerBytes == 0 {
		opts.LayerBytes = 64 << 10
	}
	if opts.Compressions == nil {
		opts.Compressions = []Compression{Gzip}
	}
	secret := "secret-" + random(16)
	layers := make([]v1.Layer, 0, opts.Layers+1)
	for n := range opts.Layers + 1 {
		tar, err := layerTar(n, opts, secret)
		if err != nil {
			return nil, err
		}
		layer, err := NewLayer(tar, opts.Compressions[n%len(opts.Compressions)])
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	img, err := ImageOf(v1.Config{Env: []string{"PATH=/bin"}, Cmd: opts.Command, User: opts.User}, layers...)
	return &Image{Image: img, Secret: secret}, err
}

// ImageOf makes an OCI image for this machine's platform.
func ImageOf(config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	return mutate.ConfigFile(img, file)
}

func layerTar(n int, opts ImageOptions, secret string) ([]byte, error) {
	b := NewTar()
	if n == 0 {
		b.system()
		b.File("etc/replaced", 0o644, []byte("lower\n"))
		b.File("etc/removed", 0o644, []byte("lower\n"))
	}
	b.Dir("data", 0o755)
	b.File(fmt.Sprintf("data/%d", n), 0o640, randomBytes(opts.LayerBytes))
	if n == opts.Layers {
		b.File("secret", 0o600, []byte(secret+"\n"))
		b.File("etc/replaced", 0o644, []byte("upper\n"))
		b.File("etc/.wh.removed", 0o644, nil)
		if opts.ZeroBytes > 0 {
			b.File("zeros", 0o644, make([]byte, opts.ZeroBytes))
		}
	}
	return b.Bytes()
}

// Push pushes an image to a registry that speaks plain HTTP.
func Push(ctx context.Context, img v1.Image, ref string) error {
	to, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(to, img, remote.WithContext(ctx))
}

// WriteLayout writes an image as OCI layout into a new folder, under a tag.
func WriteLayout(img v1.Image, dir, tag string) error {
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return l.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag}),
		layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func random(n int) string { return hex.EncodeToString(randomBytes(n)) }

// pushPause pushes the image whose container holds a pod's namespaces.
func (t *Testbed) pushPause(ctx context.Context) error {
	img, err := NewImage(ImageOptions{Layers: 1, LayerBytes: 1, Command: []string{"/bin/busybox", "sleep", "1000000"}})
	if err != nil {
		return err
	}
	return Push(ctx, img, t.pause)
}
