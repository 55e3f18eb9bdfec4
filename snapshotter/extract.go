// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// checkExtraction refuses, with what to do instead, a layer that a client of
// containerd is about to unpack by itself and cannot: it is encrypted, or its blob
// is not on this machine. Such clients send no chain id in a label, and take
// AlreadyExists for an error, so there is no way to give them the layer. But the
// chain id is part of the key. A plain layer with a blob is theirs to unpack.
func (s *Snapshotter) checkExtraction(ctx context.Context, key string) error {
	if s.finder == nil || !isExtraction(key) {
		return nil
	}
	chain := digest.Digest(key[strings.LastIndexByte(key, ' ')+1:])
	blob, there, err := s.finder.FindBlob(ctx, chain)
	switch {
	case err != nil:
		// It may come from a file: containerd knows.
		s.log.Debug("layer to be unpacked is unknown", "layer", chain, "err", err)
		return nil
	case strings.HasSuffix(blob.MediaType, "+encrypted"):
		return fmt.Errorf("layer %s is encrypted, and containerd's client wants to unpack it on this host: pull the image for this snapshotter through the transfer service (ctr image pull without --local, nerdctl pull, or CRI with the runtime handler of coffer): %w", blob.Digest, errdefs.ErrFailedPrecondition)
	case !there:
		return fmt.Errorf("the blob of layer %s is not in containerd, whose client wants to unpack it on this host: pull the image for this snapshotter (ctr image pull --snapshotter, nerdctl --snapshotter pull, or CRI with the runtime handler of coffer): %w", blob.Digest, errdefs.ErrFailedPrecondition)
	}
	return nil
}
