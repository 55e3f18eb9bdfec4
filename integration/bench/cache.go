// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// cacheVersion names what the generator makes. Whoever changes the generated
// data changes it too.
const cacheVersion = "2"

// cache is the folder of generated images: blobs by digest, and a file for
// each image with its manifest's digest.
type cache struct{ dir string }

// openCache makes the folder and removes those of other versions, and what a
// killed run was writing. No other run can open it until release, since two at
// a time would measure each other.
func openCache(dir string) (c cache, release func() error, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return c, nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return c, nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return c, nil, errors.Join(errors.New("another benchmark runs: wait for its end"), lock.Close())
	}
	c.dir = filepath.Join(dir, "v"+cacheVersion)
	return c, lock.Close, c.prepare(dir)
}

func (c cache) prepare(dir string) error {
	old, err := filepath.Glob(filepath.Join(dir, "v*"))
	if err != nil {
		return err
	}
	for _, o := range old {
		if o != c.dir {
			if err := os.RemoveAll(o); err != nil {
				return err
			}
		}
	}
	for _, d := range []string{"blobs", "images"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o755); err != nil {
			return err
		}
	}
	unfinished, err := filepath.Glob(filepath.Join(c.dir, "blobs", "new-*"))
	for _, f := range unfinished {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}

func (c cache) blob(d digest.Digest) string { return filepath.Join(c.dir, "blobs", d.Encoded()) }

// find returns the digest of an image's manifest, "" for an unknown image.
func (c cache) find(image string) (digest.Digest, error) {
	b, err := os.ReadFile(filepath.Join(c.dir, "images", image))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return digest.Digest(strings.TrimSpace(string(b))), err
}

func (c cache) record(image string, manifest digest.Digest) error {
	return replaceFile(filepath.Join(c.dir, "images", image), []byte(manifest.String()+"\n"))
}

// put stores a small blob.
func (c cache) put(b []byte) (digest.Digest, error) {
	d := digest.FromBytes(b)
	return d, replaceFile(c.blob(d), b)
}

// keys returns the RSA key for programs that unwrap with JWE; the file of the
// private one is made at first use.
func (c cache) keys() (private string, public []byte, err error) {
	private, pub := filepath.Join(c.dir, "key.pem"), filepath.Join(c.dir, "key.pub.pem")
	if public, err = os.ReadFile(pub); err == nil || !errors.Is(err, os.ErrNotExist) {
		return private, public, err
	}
	priv, public, err := newRSAKey()
	if err != nil {
		return "", nil, err
	}
	return private, public, errors.Join(replaceFile(private, priv), replaceFile(pub, public))
}

// replaceFile writes a file so that it is there whole or not at all.
func replaceFile(path string, b []byte) error {
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
