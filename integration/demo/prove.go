// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
)

// prove checks the demo's claims; each that does not hold is an error.
func (d *demo) prove(ctx context.Context) error {
	for _, claim := range []func(context.Context) error{d.proveHost, d.proveRegistry, d.proveAttestation} {
		if err := claim(ctx); err != nil {
			return err
		}
	}
	var err error
	d.summary.PeakGuestRSSBytes, err = d.tb.GuestPeakRSS()
	d.say("coffer-guest: at most %s of memory", mebibytes(d.summary.PeakGuestRSSBytes))
	return err
}

// proveHost: the host's content store never held a layer.
func (d *demo) proveHost(ctx context.Context) error {
	var all []string
	for _, namespace := range []string{"k8s.io", "default"} {
		blobs, err := d.tb.Blobs(ctx, namespace)
		if err != nil {
			return err
		}
		all = append(all, blobs...)
	}
	for _, l := range d.layers {
		if slices.Contains(all, l.Digest) {
			d.summary.HostLayerBlobs++
		}
	}
	d.say("host: containerd's content store has %d blobs (manifests and configurations), %d of them layers", len(all), d.summary.HostLayerBlobs)
	if d.summary.HostLayerBlobs > 0 {
		return errors.New("the host has layers")
	}
	return nil
}

// proveRegistry: what the registry gives out is neither an archive nor has it
// the secret.
func (d *demo) proveRegistry(ctx context.Context) error {
	for _, l := range d.layers {
		blob, err := d.fetch(ctx, l.Digest)
		if err != nil {
			return err
		}
		if kind := archive(blob); kind != "" {
			return fmt.Errorf("the registry's layer %s is plain %s", l.Digest, kind)
		}
		if bytes.Contains(blob, []byte(d.source.secret)) {
			return fmt.Errorf("the registry's layer %s has the secret", l.Digest)
		}
	}
	last := d.layers[len(d.layers)-1]
	blob, err := d.fetch(ctx, last.Digest)
	if err != nil {
		return err
	}
	d.say("registry: %d layers, none is gzip, zstd or tar; the one with the secret begins with % x", len(d.layers), blob[:8])
	return nil
}

// fetch gets a blob as anybody could.
func (d *demo) fetch(ctx context.Context, digest string) ([]byte, error) {
	repository, _, _ := strings.Cut(strings.TrimPrefix(d.ref, d.tb.RegistryHost+"/"), ":")
	url := fmt.Sprintf("http://%s/v2/%s/blobs/%s", d.tb.RegistryHost, repository, digest)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// archive names the format of a plain layer, "" if blob has none of them.
func archive(blob []byte) string {
	const tarMagic, tarMagicAt = "ustar", 257
	switch {
	case bytes.HasPrefix(blob, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(blob, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd"
	case len(blob) > tarMagicAt && bytes.HasPrefix(blob[tarMagicAt:], []byte(tarMagic)):
		return "tar"
	}
	return ""
}

// proveAttestation: one handshake served all layers and both runs.
func (d *demo) proveAttestation(ctx context.Context) error {
	var err error
	if d.summary.Attestations, err = d.tb.Handshakes(ctx); err != nil {
		return err
	}
	d.say("KBS: %d attestation for %d layers, pulled by crictl and by ctr", d.summary.Attestations, len(d.layers))
	if d.summary.Attestations != 1 {
		return fmt.Errorf("%d attestations, want 1", d.summary.Attestations)
	}
	return nil
}
