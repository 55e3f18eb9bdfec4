// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
)

// Blobs lists the digests of all blobs in a namespace of containerd's content
// store.
func (t *Testbed) Blobs(ctx context.Context, namespace string) (digests []string, err error) {
	client, err := t.Client(namespace)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	err = client.ContentStore().Walk(ctx, func(i content.Info) error {
		digests = append(digests, i.Digest.String())
		return nil
	})
	return digests, err
}

// Snapshots lists the names of a namespace's snapshots in a snapshotter.
func (t *Testbed) Snapshots(ctx context.Context, namespace, snapshotter string) (names []string, err error) {
	client, err := t.Client(namespace)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	err = client.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		names = append(names, i.Name)
		return nil
	})
	return names, err
}
