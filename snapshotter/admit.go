// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Admitter asks the TEE's image policy about images that are here already.
type Admitter interface {
	// AdmitsAll reports that nothing needs to be asked at the moment. It is
	// asked before each container's snapshot, so it must be cheap.
	AdmitsAll(ctx context.Context) (bool, error)
	// AdmitImage returns nil where an image may be used under this name;
	// PermissionDenied is a no. index is empty where the name leads straight
	// to the manifest.
	AdmitImage(ctx context.Context, image string, manifest, index digest.Digest) error
}

// ImageLister lists the images, in the containerd namespace of ctx, that a
// container on the layer with this chain id may be made from.
type ImageLister interface {
	ImagesOf(ctx context.Context, chainID digest.Digest, found func(name string, manifest, index digest.Digest) error) error
}

// admit asks the TEE about the images that a new snapshot on parent may be the
// container of. containerd does not say which one it is, and asks for no pull
// where it has all layers of an image, under whatever name. So all of them must be
// allowed: else one that a registry has given the layers of an allowed image, and
// a configuration of its own, would run unseen.
//
// A layer that is on top of no image is refused too: the image that a container
// was to be made of has just been removed, or there never was one. What containerd
// itself unpacks on a layer is no container; it is asked about when a container is
// made on it. Snapshots of builds have names of their own and are not asked about.
// In the guest route the guest that pulls the image asks its own policy.
//
// No transaction and no lock is held, here or in containerd.
func (s *Snapshotter) admit(ctx context.Context, key, parent string) error {
	chain, ok := imageLayer(parent)
	if !ok || s.admitter == nil || s.route == Guest || isExtraction(key) {
		return nil
	}
	all, err := s.admitter.AdmitsAll(ctx)
	if err != nil {
		return fmt.Errorf("whether there is an image policy is not known: %w", err)
	}
	if all {
		return nil
	}
	asked := 0
	err = s.images.ImagesOf(ctx, chain, func(name string, manifest, index digest.Digest) error {
		asked++
		return s.admitImage(ctx, name, manifest, index)
	})
	if err != nil {
		s.log.Warn("container is refused", "snapshot", key, "layer", chain, "err", err)
		return err
	}
	if asked == 0 {
		return fmt.Errorf("no image of this containerd namespace has the topmost layer %s, so that the image policy cannot be asked: pull the image again: %w", chain, errdefs.ErrFailedPrecondition)
	}
	s.log.Debug("container is admitted", "snapshot", key, "layer", chain, "images", asked)
	return nil
}

func (s *Snapshotter) admitImage(ctx context.Context, name string, manifest, index digest.Digest) error {
	err := s.admitter.AdmitImage(ctx, name, manifest, index)
	switch {
	case err == nil:
		s.log.Debug("image is admitted", "image", name, "manifest", manifest)
		return nil
	case errdefs.IsPermissionDenied(err), errdefs.IsInvalidArgument(err):
		ns, _ := namespaces.Namespace(ctx)
		return fmt.Errorf("image %s has the layers that the container is to have, and may not be used: remove it (crictl rmi, or ctr -n %s images rm): %w", name, ns, err)
	}
	return fmt.Errorf("whether image %s may be used cannot be told: %w", name, err)
}

// imageLayer returns the chain id of a snapshot that is an image layer: one that
// the puller has, or one that containerd unpacked itself, which is named in its
// namespace.
func imageLayer(name string) (digest.Digest, bool) {
	if parts := strings.SplitN(name, "/", 3); len(parts) == 3 {
		name = parts[2]
	}
	return layerChain(name)
}

// isExtraction tells the keys under which containerd unpacks a layer:
// <namespace>/<number>/extract-<unique> <chain id>. A container's key has no
// space in it.
func isExtraction(key string) bool {
	if parts := strings.SplitN(key, "/", 3); len(parts) == 3 {
		key = parts[2]
	}
	unique, chain, ok := strings.Cut(key, " ")
	return ok && strings.HasPrefix(unique, snapshots.UnpackKeyPrefix+"-") && digest.Digest(chain).Validate() == nil
}
