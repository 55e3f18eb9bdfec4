// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/coffer-cc/coffer/imagepull/service"
	"github.com/coffer-cc/coffer/integration/testbed"
	"github.com/coffer-cc/coffer/kbs"
	"github.com/coffer-cc/coffer/kbs/resource"
)

// guestPull is what a real coffer-guest took for an image.
type guestPull struct {
	image string
	wall  float64 // seconds
	rss   int64   // bytes; the peak, start of the guest included
}

// pullWithGuest starts coffer-kbs and coffer-guest and has the guest pull an
// image, with attestation and all. The guest's store is a tmpfs of storeBytes.
func (b *bench) pullWithGuest(ctx context.Context, image string, storeBytes int64) (_ guestPull, err error) {
	tb, err := testbed.New(ctx, testbed.Options{Programs: b.programs, GuestStoreBytes: storeBytes})
	if err != nil {
		return guestPull{}, err
	}
	defer func() { err = errors.Join(err, tb.Close()) }()
	registry, err := startRegistry(ctx, b.cache, tb.RegistryHost)
	if err != nil {
		return guestPull{}, err
	}
	defer registry.stop()
	if err := startKBS(ctx, tb); err != nil {
		return guestPull{}, err
	}
	if err := tb.Guest.Start(ctx); err != nil {
		return guestPull{}, err
	}
	manifest, chain, err := b.cache.top(image)
	if err != nil {
		return guestPull{}, err
	}
	client := service.NewClient(filepath.Join(tb.Dir, "g.sock"))
	defer func() { _ = client.Close() }()
	began := time.Now()
	if _, _, _, err := client.PullLayer(ctx, reference(registry.addr, image), manifest, chain); err != nil {
		return guestPull{}, fmt.Errorf("coffer-guest: %w", err)
	}
	p := guestPull{image: image, wall: time.Since(began).Seconds()}
	p.rss, err = tb.GuestPeakRSS()
	return p, err
}

// startKBS starts coffer-kbs and gives it the key of the generated images.
func startKBS(ctx context.Context, tb *testbed.Testbed) error {
	if err := tb.KBS.Start(ctx); err != nil {
		return err
	}
	admin, err := tb.Admin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }()
	uri, err := resource.ParseURI(kekURI)
	if err != nil {
		return err
	}
	id, err := resource.ParseID(uri.Path)
	if err != nil {
		return err
	}
	return admin.PutResource(ctx, id, kek(), kbs.PutOptions{})
}
