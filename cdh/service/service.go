// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package service is the Confidential Data Hub on ttrpc, under the service
// names that guest-components gave it, so that kata-agent and other clients in
// the guest find what they expect.
//
// Whoever can connect to the socket gets the keys and resources that this TEE
// is entitled to: only processes of the same TEE may. The package translates;
// the hub and the puller do the work. It imports no gRPC server.
package service

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/cdh/api"
)

// maxResource is what fits into one ttrpc message (4 MiB) beside its framing.
const maxResource = 4<<20 - 4<<10

// Hub is what the key and resource services need; *cdh.Hub is one.
type Hub interface {
	UnwrapKey(ctx context.Context, packet []byte) (privateOptions []byte, err error)
	GetResource(ctx context.Context, uri string) ([]byte, error)
}

// Puller makes the bundle of an image: <bundle>/rootfs and config.json. It
// returns the digest of the platform's manifest. *imagepull.Puller is one.
type Puller interface {
	PullImage(ctx context.Context, image, bundle string) (digest.Digest, error)
}

// Options are the service's settings; the zero value is the default.
type Options struct {
	// Logger gets one line for each refused request, since most clients throw
	// the reason away. Nil discards.
	Logger *slog.Logger
}

// Register adds the hub's services to server. Errors of hub and puller travel
// as the gRPC status of their errdefs class, with their text as the message.
func Register(server *ttrpc.Server, hub Hub, puller Puller, opts Options) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	s := &services{hub: hub, puller: puller, log: opts.Logger}
	api.RegisterSealedSecretServiceService(server, s)
	api.RegisterGetResourceServiceService(server, s)
	api.RegisterSecureMountServiceService(server, s)
	api.RegisterImagePullServiceService(server, s)
	registerKeyProvider(server, s)
}

type services struct {
	hub    Hub
	puller Puller
	log    *slog.Logger
}

// GetResource returns the resource of a kbs URI.
func (s *services) GetResource(ctx context.Context, req *api.GetResourceRequest) (*api.GetResourceResponse, error) {
	resource, err := s.hub.GetResource(ctx, req.GetResourcePath())
	if err == nil && len(resource) > maxResource {
		err = fmt.Errorf("%w: resource %q has %d bytes, at most %d fit into an answer",
			errdefs.ErrOutOfRange, req.GetResourcePath(), len(resource), maxResource)
	}
	if err != nil {
		return nil, s.refuse(ctx, "GetResource", err)
	}
	return &api.GetResourceResponse{Resource: resource}, nil
}

// PullImage pulls an image into a bundle.
func (s *services) PullImage(ctx context.Context, req *api.ImagePullRequest) (*api.ImagePullResponse, error) {
	var missing string
	switch {
	case req.GetImageUrl() == "":
		missing = "image_url"
	case req.GetBundlePath() == "":
		missing = "bundle_path"
	}
	if missing != "" {
		return nil, s.refuse(ctx, "PullImage", fmt.Errorf("%w: no %s", errdefs.ErrInvalidArgument, missing))
	}
	manifest, err := s.puller.PullImage(ctx, req.GetImageUrl(), req.GetBundlePath())
	if err != nil {
		return nil, s.refuse(ctx, "PullImage", err)
	}
	return &api.ImagePullResponse{ManifestDigest: manifest.String()}, nil
}

// UnsealSecret is not offered.
func (s *services) UnsealSecret(ctx context.Context, _ *api.UnsealSecretInput) (*api.UnsealSecretOutput, error) {
	return nil, s.refuse(ctx, "UnsealSecret", fmt.Errorf("%w: sealed secrets are not offered by this hub; "+
		"fetch the secret as a resource with GetResource", errdefs.ErrNotImplemented))
}

// SecureMount is not offered.
func (s *services) SecureMount(ctx context.Context, req *api.SecureMountRequest) (*api.SecureMountResponse, error) {
	return nil, s.refuse(ctx, "SecureMount", fmt.Errorf("%w: secure mounts (volume type %q) are not offered by this hub",
		errdefs.ErrNotImplemented, req.GetVolumeType()))
}
