// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/timeline"
)

const pullHelp = `Pull the image REF into a layer store on this machine, without containerd: the
puller of the confidential guest, run by hand. It takes root's rights.

Layers are verified, decrypted and unpacked below --root, which is made if need
be; what is there already is not fetched again. With --bundle the layers are also
mounted at BUNDLE/rootfs, under a writable layer, beside BUNDLE/config.json, so
that an OCI runtime can start it. The mount stays until

  coffer bundle remove BUNDLE --root DIR

An encrypted image needs its key: from a key broker service (--kbs), which gives
it to a machine that its owner trusts, or from the file that coffer encrypt --key
made (--key). The service is asked only if a layer is encrypted.

Registries are asked over https, those of this machine (localhost, 127.0.0.1,
::1) over plain http.

Standard output is the image's reference, pinned to its digest, or, with --json,
one JSON object. --timeline draws when each layer was fetched, unwrapped,
decrypted, unpacked and committed, and where attestation ran, also if the pull
fails.`

// pullFlags are the flags of coffer pull.
type pullFlags struct {
	root, bundle   string
	json, quiet    bool
	timeline       string
	policy         string
	signatures     string
	platform       string
	registriesConf string
	certsDir       string
	maxDownloads   int
	verifyFirst    bool
	keys           keySourceFlags
	registry       registryFlags
}

func (p *process) pullCommand() *cobra.Command {
	flags := &pullFlags{}
	cmd := &cobra.Command{
		Use:   "pull REF --root DIR",
		Short: "Pull an image into a layer store, decrypting it on the way",
		Long:  pullHelp,
		Example: `  coffer pull docker.io/library/alpine:3 --root /var/lib/coffer/pull
  coffer pull registry.example.com/app:encrypted --root /var/lib/coffer/pull --bundle /run/app \
    --kbs https://kbs.example.com --timeline pull.svg`,
		Args: arguments("REF"),
		RunE: func(cmd *cobra.Command, args []string) error { return inFlags(p.pull(cmd.Context(), flags, args[0])) },
	}
	f := cmd.Flags()
	f.StringVar(&flags.root, "root", "", "`FOLDER` of the layer store")
	f.StringVar(&flags.bundle, "bundle", "", "make an OCI runtime bundle in this `FOLDER`")
	f.BoolVar(&flags.json, "json", false, "print one JSON object when the pull is done, and nothing else on standard output")
	f.BoolVarP(&flags.quiet, "quiet", "q", false, "show no progress")
	f.StringVar(&flags.timeline, "timeline", "", "draw the pull into this SVG `FILE`")
	f.StringVar(&flags.signatures, "signatures", "", "where simple signatures are stored, a `FILE` in the form of registries.d, or a kbs URI")
	f.StringVar(&flags.policy, "policy", "", "image policy, a `FILE` in the form of policy.json, or a kbs URI (default: every image)")
	f.StringVar(&flags.platform, "platform", "", "the image for `OS/ARCH[/VARIANT]` (default: this machine's)")
	f.StringVar(&flags.registriesConf, "registries-conf", "", "mirrors and other places of images, a `FILE` in the form of registries.conf")
	f.StringVar(&flags.certsDir, "certs-dir", "", "certificates to trust and to show, by registry, in a `FOLDER` like /etc/docker/certs.d")
	f.IntVar(&flags.maxDownloads, "max-downloads", 0, fmt.Sprintf("fetch at most `N` layers at a time (default %d)", imagepull.DefaultMaxDownloads))
	f.BoolVar(&flags.verifyFirst, "verify-before-unpack", false, "verify each layer as a whole before any of it is unpacked")
	flags.keys.add(f)
	flags.registry.add(cmd)
	return cmd
}

// check finds what makes no sense before anything is done.
func (f *pullFlags) check() error {
	switch {
	case runtime.GOOS != "linux":
		return usagef("coffer pull unpacks and mounts as Linux does: run it on Linux")
	case f.root == "":
		return usagef("where to? name the folder of the layer store with --root DIR")
	case f.maxDownloads < 0:
		return usagef("--max-downloads %d is less than 0", f.maxDownloads)
	case os.Geteuid() != 0:
		return usagef("unpacking layers, with their owners and devices, needs root's rights: run it as root")
	}
	if f.timeline != "" {
		if _, err := os.Stat(filepath.Dir(f.timeline)); err != nil {
			return fmt.Errorf("timeline: %w", err) // now, not after the pull
		}
	}
	return nil
}

func (p *process) pull(ctx context.Context, flags *pullFlags, name string) error {
	if err := flags.check(); err != nil {
		return err
	}
	ref, err := registry.ParseReference(name)
	if err != nil {
		return usageError{err}
	}
	shown := newPullProgress(p.stderr, flags.quiet)
	pl, err := p.newPulling(ctx, flags, ref, shown.event)
	if err != nil {
		return err
	}
	shown.place = func(chainID digest.Digest) int { return pl.registry.last().Find(chainID) }
	began := time.Now()
	err = pl.run(ctx, name, flags.bundle)
	took := time.Since(began)
	shown.close()
	if flags.timeline != "" {
		err = errors.Join(err, pl.draw(flags.timeline))
	}
	if err == nil {
		err = p.reportPull(pl, flags, took)
	}
	return errors.Join(err, pl.close())
}

// run pulls all layers, and makes the bundle if there is to be one.
func (pl *pulling) run(ctx context.Context, name, bundle string) (err error) {
	if bundle != "" {
		if pl.bundle, err = filepath.Abs(bundle); err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
		_, err := pl.puller.PullImage(ctx, name, pl.bundle)
		return err
	}
	image, err := pl.puller.PullLayers(ctx, name)
	if err == nil && len(image.Layers) == 0 {
		return fmt.Errorf("image %s has no layers: %w", name, errdefs.ErrInvalidArgument)
	}
	return err
}

// draw writes the timeline; the file is either whole or not there.
func (pl *pulling) draw(name string) error {
	var b bytes.Buffer
	if err := pl.timeline().WriteSVG(&b); err != nil {
		return fmt.Errorf("timeline: %w", err)
	}
	if err := writeWhole(name, b.Bytes()); err != nil {
		return fmt.Errorf("timeline: %w", err)
	}
	return nil
}

// timeline has the layers from the bottom up, and not in the order of events.
func (pl *pulling) timeline() timeline.Timeline {
	t, image := pl.recorder.Timeline(), pl.registry.last()
	t.Layers = slices.SortedStableFunc(slices.Values(t.Layers), func(a, b timeline.Layer) int {
		return image.Find(a.ChainID) - image.Find(b.ChainID)
	})
	return t
}

// writeWhole replaces a file, readable by all, at once.
func writeWhole(name string, data []byte) error {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return os.WriteFile(name, data, 0o600) // a pipe, or /dev/stdout
	}
	file, err := os.CreateTemp(filepath.Dir(name), ".coffer-*")
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	err = errors.Join(err, file.Chmod(0o644), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return nil
}
