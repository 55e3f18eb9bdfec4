// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagefinder

import (
	"context"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// FromContainerd returns a Finder over containerd's API. conn stays the
// caller's.
func FromContainerd(conn grpc.ClientConnInterface, o Options) *Finder {
	return New(contentproxy.NewContentStore(conn), records{imagesapi.NewImagesClient(conn)}, o)
}

// records lists image records over the API, with name and target digest only.
type records struct{ client imagesapi.ImagesClient }

func (r records) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	resp, err := r.client.List(ctx, &imagesapi.ListImagesRequest{Filters: filters})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	list := make([]images.Image, 0, len(resp.GetImages()))
	for _, image := range resp.GetImages() {
		target := ocispec.Descriptor{Digest: digest.Digest(image.GetTarget().GetDigest())}
		list = append(list, images.Image{Name: image.GetName(), Target: target})
	}
	return list, nil
}
