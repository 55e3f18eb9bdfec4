// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/api"
)

// LayerPuller is what is served; *imagepull.Puller is one.
type LayerPuller interface {
	// PullLayer returns the directory of a layer that is verified and in the
	// store, with its bytes on disk and its inodes.
	PullLayer(ctx context.Context, image string, manifest, chainID digest.Digest) (path string, size, inodes int64, err error)
	// RemoveLayer takes a layer out of the store; an absent one is no error.
	RemoveLayer(ctx context.Context, chainID digest.Digest) error
	// AdmitImage returns nil where an image that is there may be used under
	// this name.
	AdmitImage(ctx context.Context, image string, manifest, index digest.Digest) error
	// AdmitsAll reports that AdmitImage has nothing to refuse or to record.
	AdmitsAll() bool
}

// RegisterLayerPuller serves p. The server checks nothing of a request; p does.
func RegisterLayerPuller(server *ttrpc.Server, p LayerPuller) {
	api.RegisterLayerPullerService(server, handler{puller: p})
}

type handler struct {
	puller LayerPuller
}

func (h handler) PullLayer(ctx context.Context, req *api.PullLayerRequest) (*api.PullLayerResponse, error) {
	path, size, inodes, err := h.puller.PullLayer(ctx, req.GetImage(), digest.Digest(req.GetManifestDigest()), digest.Digest(req.GetChainId()))
	if err != nil {
		return nil, toWire(err)
	}
	return &api.PullLayerResponse{Path: path, Size: size, Inodes: inodes}, nil
}

func (h handler) RemoveLayer(ctx context.Context, req *api.RemoveLayerRequest) (*api.RemoveLayerResponse, error) {
	if err := h.puller.RemoveLayer(ctx, digest.Digest(req.GetChainId())); err != nil {
		return nil, toWire(err)
	}
	return &api.RemoveLayerResponse{}, nil
}

func (h handler) AdmitImage(ctx context.Context, req *api.AdmitImageRequest) (*api.AdmitImageResponse, error) {
	if err := h.puller.AdmitImage(ctx, req.GetImage(), digest.Digest(req.GetManifestDigest()), digest.Digest(req.GetIndexDigest())); err != nil {
		return nil, toWire(err)
	}
	return &api.AdmitImageResponse{}, nil
}

func (h handler) AdmitsAll(context.Context, *api.AdmitsAllRequest) (*api.AdmitsAllResponse, error) {
	return &api.AdmitsAllResponse{All: h.puller.AdmitsAll()}, nil
}

// toWire keeps class and text. The chain below is left behind: errgrpc would
// send its joined parts as details, and they would be in the text twice.
func toWire(err error) error {
	if class, ok := errdefs.Resolve(err).(interface{ WithMessage(string) error }); ok {
		err = class.WithMessage(err.Error())
	}
	return errgrpc.ToGRPC(err)
}
