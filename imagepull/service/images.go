// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-cc/coffer/imagepull/api"
	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/store"
)

// ImagePuller is what is served for whole images; *imagepull.Puller is one.
type ImagePuller interface {
	// PullImage makes a runtime bundle of an image and returns the digest of
	// the platform's manifest.
	PullImage(ctx context.Context, image, bundle string) (digest.Digest, error)
	// RemoveImage undoes that; an absent bundle is no error.
	RemoveImage(ctx context.Context, bundle string) error
	// Images and Usage tell what the store has.
	Images() []store.Image
	Usage() (store.Usage, error)
	// GC removes what is too old, or over the limit.
	GC(ctx context.Context) (store.Result, error)
	// Watch calls f with the zero event and then each event, until ctx ends or
	// f fails; a slow f misses events and holds up nobody.
	Watch(ctx context.Context, f func(e progress.Event, missed uint64) error) error
}

// RegisterImagePuller serves p. The server checks nothing of a request; p does.
func RegisterImagePuller(server *ttrpc.Server, p ImagePuller) {
	api.RegisterImagePullerService(server, images{puller: p})
}

type images struct {
	puller ImagePuller
}

func (h images) PullImage(ctx context.Context, req *api.PullImageRequest) (*api.PullImageResponse, error) {
	manifest, err := h.puller.PullImage(ctx, req.GetImage(), req.GetBundle())
	if err != nil {
		return nil, toWire(err)
	}
	return &api.PullImageResponse{ManifestDigest: manifest.String()}, nil
}

func (h images) RemoveImage(ctx context.Context, req *api.RemoveImageRequest) (*api.RemoveImageResponse, error) {
	if err := h.puller.RemoveImage(ctx, req.GetBundle()); err != nil {
		return nil, toWire(err)
	}
	return &api.RemoveImageResponse{}, nil
}

func (h images) ListImages(context.Context, *api.ListImagesRequest) (*api.ListImagesResponse, error) {
	u, err := h.puller.Usage()
	if err != nil {
		return nil, toWire(err)
	}
	resp := &api.ListImagesResponse{Usage: &api.Usage{
		Images: int64(u.Images), Layers: int64(u.Layers), Bytes: u.Bytes, Inodes: u.Inodes, Limit: u.Limit, Free: u.Free,
	}}
	for _, i := range h.puller.Images() {
		resp.Images = append(resp.Images, &api.Image{
			ManifestDigest: i.Manifest.String(), References: i.References, Layers: texts(i.Layers),
			Size: i.Size, Exclusive: i.Exclusive, LastUsed: i.LastUsed.UnixNano(), InUse: i.InUse,
		})
	}
	return resp, nil
}

func (h images) GC(ctx context.Context, _ *api.GCRequest) (*api.GCResponse, error) {
	r, err := h.puller.GC(ctx)
	if err != nil {
		return nil, toWire(err)
	}
	return &api.GCResponse{Images: texts(r.Images), Layers: int64(r.Layers), Bytes: r.Bytes, Inodes: r.Inodes}, nil
}

func (h images) Watch(ctx context.Context, req *api.WatchRequest, stream api.ImagePuller_WatchServer) error {
	missed := uint64(0)
	err := h.puller.Watch(ctx, func(e progress.Event, before uint64) error {
		missed += before
		if req.GetImage() != "" && e.Image != req.GetImage() && e.Stage != "" {
			return nil
		}
		msg := eventToWire(e)
		msg.Missed, missed = missed, 0
		return stream.Send(msg)
	})
	return toWire(err)
}

func texts(ds []digest.Digest) []string {
	out := make([]string, len(ds))
	for i, d := range ds {
		out[i] = d.String()
	}
	return out
}

func digests(texts []string) []digest.Digest {
	out := make([]digest.Digest, len(texts))
	for i, s := range texts {
		out[i] = digest.Digest(s)
	}
	return out
}

func eventToWire(e progress.Event) *api.WatchEvent {
	msg := &api.WatchEvent{
		Image: e.Image, ManifestDigest: e.Manifest.String(), Layer: e.Layer.String(), Blob: e.Blob.String(),
		Stage: string(e.Stage), State: string(e.State), Bytes: e.Bytes, Total: e.Total, Unpacked: e.Unpacked, Cached: e.Cached,
		Took: int64(e.Took), Added: e.Added,
	}
	if !e.Time.IsZero() {
		msg.Time = e.Time.UnixNano()
	}
	if e.Err != nil {
		s := status.Convert(toWire(e.Err))
		msg.Error, msg.Code = s.Message(), int32(s.Code())
	}
	return msg
}

func eventFromWire(msg *api.WatchEvent) progress.Event {
	e := progress.Event{
		Image: msg.GetImage(), Manifest: digest.Digest(msg.GetManifestDigest()), Layer: digest.Digest(msg.GetLayer()), Blob: digest.Digest(msg.GetBlob()),
		Stage: progress.Stage(msg.GetStage()), State: progress.State(msg.GetState()),
		Bytes: msg.GetBytes(), Total: msg.GetTotal(), Unpacked: msg.GetUnpacked(), Cached: msg.GetCached(),
		Took: time.Duration(msg.GetTook()), Added: msg.GetAdded(),
	}
	if msg.GetTime() != 0 {
		e.Time = time.Unix(0, msg.GetTime())
	}
	switch {
	case msg.GetError() == progress.ErrAborted.Error():
		e.Err = progress.ErrAborted
	case msg.GetError() != "":
		e.Err = errgrpc.ToNative(status.Error(codes.Code(msg.GetCode()), msg.GetError()))
	}
	return e
}
