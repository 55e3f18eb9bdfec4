// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
)

// snapshotLabel is the label by which containerd ties an image's config to the
// snapshot of its top layer; the snapshotter's name follows.
const snapshotLabel = "containerd.io/gc.ref.snapshot."

// records is what containerd knows of one snapshotter, in all its namespaces.
// Nothing else of containerd is touched.
type records struct {
	conn *grpc.ClientConn
	name string
}

// used is something in containerd that needs the snapshotter.
type used struct {
	kind, namespace, name string
}

// String tells how to get rid of it.
func (u used) String() string {
	switch {
	case u.kind == "container" && u.namespace == "k8s.io":
		return fmt.Sprintf("container %s of CRI: crictl rm -f %[1]s (of a pod: crictl rmp -f)", u.name)
	case u.kind == "container":
		return fmt.Sprintf("container %s in namespace %s: ctr -n %[2]s containers rm %[1]s", u.name, u.namespace)
	case u.namespace == "k8s.io":
		return fmt.Sprintf("image %s of CRI: crictl rmi %[1]s", u.name)
	}
	return fmt.Sprintf("image %s in namespace %s: ctr -n %[2]s images rm %[1]s", u.name, u.namespace)
}

func (r records) namespaces(ctx context.Context) ([]string, error) {
	resp, err := namespacesapi.NewNamespacesClient(r.conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	var names []string
	for _, n := range resp.GetNamespaces() {
		names = append(names, n.GetName())
	}
	return names, nil
}

// users lists the containers and images that need the snapshotter.
func (r records) users(ctx context.Context) (all []used, err error) {
	names, err := r.namespaces(ctx)
	if err != nil {
		return nil, err
	}
	for _, ns := range names {
		ctx := namespaces.WithNamespace(ctx, ns)
		found, err := containersapi.NewContainersClient(r.conn).List(ctx, &containersapi.ListContainersRequest{Filters: []string{"snapshotter==" + r.name}})
		if err != nil {
			return nil, errgrpc.ToNative(err)
		}
		for _, c := range found.GetContainers() {
			all = append(all, used{"container", ns, c.GetID()})
		}
		images, err := r.images(ctx)
		if err != nil {
			return nil, err
		}
		for _, i := range images {
			all = append(all, used{"image", ns, i})
		}
	}
	return all, nil
}

// images lists the images of a namespace whose layers are in the snapshotter. It
// follows containerd's labels from a config to what names it.
func (r records) images(ctx context.Context) (names []string, err error) {
	targets, err := r.blobs(ctx, fmt.Sprintf("labels.%q", snapshotLabel+r.name))
	if err != nil || len(targets) == 0 {
		return nil, err
	}
	for next := targets; len(next) > 0; {
		var parents []string
		blobs, err := r.contents(ctx)
		if err != nil {
			return nil, err
		}
		for _, b := range blobs {
			for label, value := range b.GetLabels() {
				if strings.HasPrefix(label, "containerd.io/gc.ref.content") && slices.Contains(next, value) && !slices.Contains(targets, b.GetDigest()) {
					parents = append(parents, b.GetDigest())
					break
				}
			}
		}
		targets, next = append(targets, parents...), parents
	}
	resp, err := imagesapi.NewImagesClient(r.conn).List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	for _, i := range resp.GetImages() {
		if slices.Contains(targets, i.GetTarget().GetDigest()) {
			names = append(names, i.GetName())
		}
	}
	return names, nil
}

func (r records) blobs(ctx context.Context, filter string) (digests []string, err error) {
	blobs, err := r.contents(ctx, filter)
	for _, b := range blobs {
		digests = append(digests, b.GetDigest())
	}
	return digests, err
}

func (r records) contents(ctx context.Context, filters ...string) (all []*contentapi.Info, err error) {
	stream, err := contentapi.NewContentClient(r.conn).List(ctx, &contentapi.ListContentRequest{Filters: filters})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	for {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, errgrpc.ToNative(err)
		}
		all = append(all, page.GetInfo()...)
	}
}

// snapshots lists the snapshots of a namespace, or with conn to a snapshotter
// those that it has, children first.
func (r records) snapshots(ctx context.Context) (names []string, err error) {
	stream, err := snapshotsapi.NewSnapshotsClient(r.conn).List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: r.name})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	parent := map[string]string{}
	for {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errgrpc.ToNative(err)
		}
		for _, s := range page.GetInfo() {
			parent[s.GetName()] = s.GetParent()
		}
	}
	depth := func(name string) (n int) {
		for ; name != "" && n <= len(parent); name = parent[name] {
			n++
		}
		return n
	}
	for name := range parent {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return depth(b) - depth(a) })
	return names, nil
}

// remove takes every snapshot out of containerd, and has containerd tell the
// snapshotter before it returns.
func (r records) remove(ctx context.Context) (n int, err error) {
	names, err := r.namespaces(ctx)
	if err != nil {
		return 0, err
	}
	client := snapshotsapi.NewSnapshotsClient(r.conn)
	for _, ns := range names {
		ctx := namespaces.WithNamespace(ctx, ns)
		keys, err := r.snapshots(ctx)
		if err != nil {
			return n, err
		}
		for _, key := range keys {
			if _, err := client.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: r.name, Key: key}); err != nil {
				return n, fmt.Errorf("snapshot %s in namespace %s: %w", key, ns, errgrpc.ToNative(err))
			}
			n++
		}
		if err := r.collect(ctx); err != nil {
			return n, err
		}
	}
	return n, nil
}

// collect waits for a garbage collection, which the end of a lease can ask for.
func (r records) collect(ctx context.Context) error {
	leases := leasesapi.NewLeasesClient(r.conn)
	const id = "coffer-uninstall"
	if _, err := leases.Create(ctx, &leasesapi.CreateRequest{ID: id}); err != nil {
		return errgrpc.ToNative(err)
	}
	_, err := leases.Delete(ctx, &leasesapi.DeleteRequest{ID: id, Sync: true})
	return errgrpc.ToNative(err)
}
