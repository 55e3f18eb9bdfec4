// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"github.com/containers/ocicrypt/spec"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types, as Docker's manifest schema 2 names them.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign      = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

// encryptedMediaType returns the type of an encrypted layer for a plain one.
// Encrypted layers have OCI types only.
func encryptedMediaType(plain string) (string, bool) {
	switch plain {
	case ocispec.MediaTypeImageLayer, dockerLayer:
		return spec.MediaTypeLayerEnc, true
	case ocispec.MediaTypeImageLayerGzip, dockerLayer + ".gzip":
		return spec.MediaTypeLayerGzipEnc, true
	case ocispec.MediaTypeImageLayerZstd, dockerLayer + ".zstd":
		return spec.MediaTypeLayerZstdEnc, true
	case ocispec.MediaTypeImageLayerNonDistributable, dockerForeign: //nolint:staticcheck // deprecated, still found in images
		return spec.MediaTypeLayerNonDistributableEnc, true
	case ocispec.MediaTypeImageLayerNonDistributableGzip, dockerForeign + ".gzip": //nolint:staticcheck // as above
		return spec.MediaTypeLayerNonDistributableGzipEnc, true
	case ocispec.MediaTypeImageLayerNonDistributableZstd, dockerForeign + ".zstd": //nolint:staticcheck // as above
		return spec.MediaTypeLayerNonDistributableZstdEnc, true
	}
	return "", false
}

func isManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == dockerManifest
}

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerManifestList
}
