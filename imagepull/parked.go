// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull/store"
	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// takeParked gets the content of the layer from a pull that failed, or a process
// that ended, before it could be committed; nil if there is none. It was verified
// then.
func (j *job) takeParked() *staged {
	staging, tree, found := j.p.store.Take(keyOf(j.layer))
	if !found {
		return nil
	}
	facts := unpack.Facts{Size: tree.Size, Inodes: tree.Inodes, Implicit: tree.Implicit}
	return &staged{Staging: staging, facts: facts, encrypted: tree.Encrypted}
}

// park has a layer that is verified outlive the process, as long as it is not
// committed. Without that the layer is as good.
func (j *job) park(ctx context.Context, s *staged) {
	err := s.Park(store.Tree{
		Content: keyOf(j.layer), Size: s.facts.Size, Inodes: s.facts.Inodes, Encrypted: s.encrypted, Implicit: s.facts.Implicit,
	})
	if err != nil {
		j.log().WarnContext(ctx, "layer is not parked, and fetched again if the pull fails", "stage", StageCommit, "err", err)
	}
}

// leave ends the staging of a layer, unless its commit did. Where the pull failed
// and the layer is parked, or to be parked first, it stays for the next one; but
// not where it was space that was missing.
func (j *job) leave(ctx context.Context, s *staged, park bool) error {
	if errdefs.IsResourceExhausted(j.p.failure(j.pl)) {
		return s.Discard()
	}
	if park {
		j.park(ctx, s)
	}
	stays, err := s.Leave()
	if stays {
		j.log().InfoContext(ctx, "layer is parked for the next pull", "stage", StageCommit)
	}
	return err
}
