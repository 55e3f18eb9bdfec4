// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// defaultImage is used where IMAGE names none and its registry answers.
const defaultImage = "docker.io/library/debian:stable-slim"

// reachTimeout is how long the default image's registry may take to answer.
const reachTimeout = 5 * time.Second

// source is the plain image.
type source struct {
	name   string
	layout string // folder of its OCI layout
	size   int64  // bytes of its layers
	secret string // a text that only its last layer has
}

// getImage finds an image and writes it to a layout, with one more layer: a
// busybox, so that a command can be run in any image, and a secret made now.
func (d *demo) getImage(ctx context.Context) error {
	img, from, err := d.find(ctx)
	if err != nil {
		return err
	}
	d.source = source{name: from, layout: d.tb.Path("plain"), secret: "for a trusted TEE only: " + rand.Text()}
	layer, err := demoLayer(d.source.secret)
	if err != nil {
		return err
	}
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		return err
	}
	if img, err = withoutEntrypoint(img); err != nil {
		return err
	}
	if d.source.size, err = layersSize(img); err != nil {
		return err
	}
	err = d.progress(ctx, "copy it to a layout on disk", d.source.size, func() int64 { return folderSize(d.source.layout) },
		func(context.Context) error { return testbed.WriteLayout(img, d.source.layout, "demo") })
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	d.summary.Image, d.summary.Layers = from, len(layers)
	d.say("%s: %d layers, %s, the last of them with a secret made just now", from, len(layers), mebibytes(d.source.size))
	return nil
}

// find returns the image that the user named, or Debian: from the cache, from
// its registry, or made from packages.
func (d *demo) find(ctx context.Context) (v1.Image, string, error) {
	if d.image != "" {
		img, err := remoteImage(ctx, d.image)
		if err != nil {
			return nil, "", fmt.Errorf("%w\nname another image with IMAGE=…, or none to use Debian", err)
		}
		return img, d.image, nil
	}
	codename, err := osRelease("VERSION_CODENAME")
	if err != nil {
		return nil, "", err
	}
	pulled, made := filepath.Join(d.cache, "pulled-"+runtime.GOARCH), filepath.Join(d.cache, codename+"-"+runtime.GOARCH)
	what := "debian:" + codename + " (made from packages)"
	for dir, name := range map[string]string{pulled: defaultImage, made: what} {
		if img, err := openLayout(dir); err == nil {
			d.say("%s is in the cache, %s", name, dir)
			return img, name, nil
		}
	}
	reach, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	if _, err := remoteImage(reach, defaultImage); err == nil {
		img, err := d.cacheDefault(ctx, pulled)
		return img, defaultImage, err
	}
	if ctx.Err() != nil {
		return nil, "", ctx.Err()
	}
	d.say("%s cannot be had from here: making a Debian from packages", defaultImage)
	img, err := d.debian(ctx, codename, made)
	return img, what, err
}

// cacheDefault pulls the default image into a layout at dir.
func (d *demo) cacheDefault(ctx context.Context, dir string) (v1.Image, error) {
	img, err := remoteImage(ctx, defaultImage)
	if err != nil {
		return nil, err
	}
	size, err := layersSize(img)
	if err != nil {
		return nil, err
	}
	return d.intoCache(dir, func(partial string) error {
		return d.progress(ctx, "pull "+defaultImage+" (once)", size, func() int64 { return folderSize(partial) },
			func(context.Context) error {
				return testbed.WriteLayout(img, filepath.Join(partial, "image"), "debian")
			})
	})
}

// intoCache has build write a layout to partial/image and moves it to dir.
func (d *demo) intoCache(dir string, build func(partial string) error) (img v1.Image, err error) {
	if err := os.MkdirAll(d.cache, 0o755); err != nil {
		return nil, err
	}
	partial, err := os.MkdirTemp(d.cache, "partial-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(partial)) }()
	if err := build(partial); err != nil {
		return nil, err
	}
	if err := os.Rename(filepath.Join(partial, "image"), dir); err != nil {
		return nil, err
	}
	return openLayout(dir)
}

// remoteImage resolves an image of a registry for this machine's platform.
func remoteImage(ctx context.Context, image string) (v1.Image, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return nil, err
	}
	return remote.Image(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
}

// withoutEntrypoint makes an image whose command is all that runs.
func withoutEntrypoint(img v1.Image) (v1.Image, error) {
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config := *file.Config.DeepCopy()
	config.Entrypoint = nil
	return mutate.Config(img, config)
}

// demoLayer is a layer with a static busybox and the secret, in /coffer-demo.
func demoLayer(secret string) (v1.Layer, error) {
	tar := testbed.NewTar()
	tar.Dir("coffer-demo", 0o755)
	tar.Busybox("coffer-demo/busybox")
	tar.File("coffer-demo/secret", 0o644, []byte(secret+"\n"))
	b, err := tar.Bytes()
	if err != nil {
		return nil, err
	}
	return testbed.NewLayer(b, testbed.Gzip)
}

func layersSize(img v1.Image) (int64, error) {
	manifest, err := img.Manifest()
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, l := range manifest.Layers {
		sum += l.Size
	}
	return sum, nil
}
