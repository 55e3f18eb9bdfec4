// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/api"
	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/store"
)

// PullImage asks the guest to make a bundle of an image at a path of the
// guest's, and returns the digest of the platform's manifest.
func (c *Client) PullImage(ctx context.Context, image, bundle string) (manifest digest.Digest, err error) {
	err = c.callImages(ctx, func(p api.ImagePullerClient) error {
		resp, err := p.PullImage(ctx, &api.PullImageRequest{Image: image, Bundle: bundle})
		manifest = digest.Digest(resp.GetManifestDigest())
		return err
	})
	return manifest, err
}

// RemoveImage asks the guest to unmount and remove a bundle.
func (c *Client) RemoveImage(ctx context.Context, bundle string) error {
	return c.callImages(ctx, func(p api.ImagePullerClient) error {
		_, err := p.RemoveImage(ctx, &api.RemoveImageRequest{Bundle: bundle})
		return err
	})
}

// ListImages asks which images the guest's store has, the least recently used
// first, and what it has in the whole.
func (c *Client) ListImages(ctx context.Context) (images []store.Image, usage store.Usage, err error) {
	err = c.callImages(ctx, func(p api.ImagePullerClient) error {
		resp, err := p.ListImages(ctx, &api.ListImagesRequest{})
		if err != nil {
			return err
		}
		u := resp.GetUsage()
		usage = store.Usage{
			Images: int(u.GetImages()), Layers: int(u.GetLayers()), Bytes: u.GetBytes(), Inodes: u.GetInodes(), Limit: u.GetLimit(), Free: u.GetFree(),
		}
		for _, i := range resp.GetImages() {
			image := store.Image{
				ImageMeta: store.ImageMeta{Manifest: digest.Digest(i.GetManifestDigest()), References: i.GetReferences()},
				Layers:    digests(i.GetLayers()), Size: i.GetSize(), Exclusive: i.GetExclusive(),
				LastUsed: time.Unix(0, i.GetLastUsed()), InUse: i.GetInUse(),
			}
			if n := len(image.Layers); n > 0 {
				image.Top = image.Layers[n-1]
			}
			images = append(images, image)
		}
		return nil
	})
	return images, usage, err
}

// GC asks the guest to remove what is too old, or over the limit of its store.
func (c *Client) GC(ctx context.Context) (result store.Result, err error) {
	err = c.callImages(ctx, func(p api.ImagePullerClient) error {
		resp, err := p.GC(ctx, &api.GCRequest{})
		result = store.Result{
			Images: digests(resp.GetImages()), Layers: int(resp.GetLayers()), Bytes: resp.GetBytes(), Inodes: resp.GetInodes(),
		}
		return err
	})
	return result, err
}

// Watch calls f with the events of an image's pulls (of all, where image is
// empty; else it is the name in its canonical spelling), until ctx ends, f
// returns an error, or the guest goes away; it returns what ended it. The first
// call has the zero Event: from then on nothing is left out but what missed
// counts. A slow f is told less, and holds up no pull.
func (c *Client) Watch(ctx context.Context, image string, f func(e progress.Event, missed uint64) error) error {
	var stopped error
	err := c.dial(ctx, func(conn *ttrpc.Client) error {
		stream, err := api.NewImagePullerClient(conn).Watch(ctx, &api.WatchRequest{Image: image})
		if err != nil {
			return err
		}
		// ttrpc gives a stream up that nobody reads for a second.
		queue, read := progress.NewQueue(), make(chan struct{})
		go func() {
			defer close(read)
			for {
				msg, err := stream.Recv()
				if err != nil {
					queue.End(err)
					return
				}
				queue.Put(eventFromWire(msg), msg.GetMissed())
			}
		}()
		err = queue.Run(ctx, func(e progress.Event, missed uint64) error {
			stopped = f(e, missed)
			return stopped
		})
		_ = conn.Close() // ends Recv
		<-read
		return err
	})
	if stopped != nil {
		return stopped
	}
	return err
}

func (c *Client) callImages(ctx context.Context, do func(api.ImagePullerClient) error) error {
	return c.dial(ctx, func(conn *ttrpc.Client) error { return do(api.NewImagePullerClient(conn)) })
}
