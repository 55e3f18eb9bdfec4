// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package snapshotter is coffer's containerd snapshotter. It has two routes. In
// the local route the machine is itself the TEE, and an in-TEE puller on the same
// machine fetches, decrypts and unpacks layers. In the guest route Kata runs
// containers in a virtual machine that is the TEE, and pulls images in there.
//
// A snapshot that containerd prepares with the label containerd.io/snapshot.ref
// is an image layer. The snapshotter commits it and answers AlreadyExists
// (containerd's remote snapshot protocol), so that containerd never fetches a
// layer blob. In the local route it has asked the puller for the layer of that
// chain id, and the snapshot links to the puller's folder. In the guest route the
// snapshot is empty, and the mounts of a container on top tell Kata to pull.
// Every other snapshot is an ordinary overlay snapshot.
//
// Labels and chain ids come from containerd, which is not trusted here: they
// say what to pull, and the puller verifies what it pulled. The package decrypts
// nothing and sees no keys. It must not import imagepull, cdh, attester or kbs.
package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// LayerPuller gets image layers into the TEE's layer store.
type LayerPuller interface {
	// PullLayer blocks until the layer with this chain id, and its parents,
	// are verified and unpacked, and returns the layer's folder on this
	// machine, to be used as an overlay lower directory, and what it holds.
	// The layer stays until RemoveLayer. Calls for one chain id may overlap.
	PullLayer(ctx context.Context, image string, manifest, chainID digest.Digest) (path string, size, inodes int64, err error)
	// RemoveLayer gives the layer up. A layer that is not there is NotFound;
	// one that is in use is FailedPrecondition and is asked for again later.
	RemoveLayer(ctx context.Context, chainID digest.Digest) error
}

// ImageFinder finds an image that has the layer with this chain id, in the
// containerd namespace of ctx.
type ImageFinder interface {
	// FindImage names it: registry and repository, and the digest of the
	// manifest.
	FindImage(ctx context.Context, chainID digest.Digest) (image string, manifest digest.Digest, err error)
	// FindLayers lists its layers from the lowest up to that one: of each
	// the labels with which containerd prepares it in a pull, those of CRI
	// left out.
	FindLayers(ctx context.Context, chainID digest.Digest) ([]map[string]string, error)
	// FindBlob returns what a manifest says of that layer, and whether its
	// blob is in containerd.
	FindBlob(ctx context.Context, chainID digest.Digest) (blob ocispec.Descriptor, there bool, err error)
}

// Options of a Snapshotter. The zero value is ready to use.
type Options struct {
	// Logger; nil discards.
	Logger *slog.Logger
	// ReleaseTimeout bounds one RemoveLayer call. Zero means one minute.
	ReleaseTimeout time.Duration
	// Route is where layers are unpacked. Empty means Local.
	Route Route
	// Guest is for the route Guest.
	Guest GuestOptions
	// Admitter is asked, before a container's snapshot is made, about the
	// images that Images lists for its layers. nil asks nobody, and so does
	// the route Guest; with an Admitter there must be Images.
	Admitter Admitter
	Images   ImageLister
}

const (
	defaultReleaseTimeout = time.Minute
	openTimeout           = 3 * time.Second
)

// Snapshotter implements snapshots.Snapshotter and snapshots.Cleaner.
//
// On disk, below its root: metadata.db; snapshots/<id>/fs, which is a folder or,
// for an image layer in the local route, a symbolic link to the puller's folder;
// snapshots/<id>/work; layers/, the names of layers that the puller may hold
// without a snapshot here; route, in the guest route, with its name.
type Snapshotter struct {
	root           string
	ms             *storage.MetaStore
	puller         LayerPuller
	finder         ImageFinder
	journal        journal
	flights        flights
	awaited        awaited
	overlayOptions []string
	log            *slog.Logger
	releaseTimeout time.Duration
	route          Route
	guest          GuestOptions
	mountType      string // of what Kata is to pull
	admitter       Admitter
	images         ImageLister
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// Open opens the snapshotter's folder, making it if needed. One process at a
// time may have a root open, always in one route. It removes nothing: call
// Cleanup once after Open. In the guest route there need be no puller.
func Open(root string, puller LayerPuller, finder ImageFinder, o Options) (*Snapshotter, error) {
	if !filepath.IsAbs(root) || strings.ContainsAny(root, ":,\\") {
		return nil, fmt.Errorf("snapshotter root %q must be an absolute path without colon, comma or backslash, which overlay mounts cannot express: %w", root, errdefs.ErrInvalidArgument)
	}
	if o.Admitter != nil && o.Images == nil {
		return nil, fmt.Errorf("an Admitter needs Images: %w", errdefs.ErrInvalidArgument)
	}
	s := &Snapshotter{
		root:           filepath.Clean(root),
		puller:         puller,
		finder:         finder,
		journal:        journal{dir: filepath.Join(root, "layers")},
		flights:        flights{chains: map[digest.Digest]*flight{}},
		awaited:        awaited{layers: map[string]expected{}},
		log:            o.Logger,
		releaseTimeout: o.ReleaseTimeout,
		route:          cmp.Or(o.Route, Local),
		guest:          o.Guest,
		admitter:       o.Admitter,
		images:         o.Images,
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.releaseTimeout == 0 {
		s.releaseTimeout = defaultReleaseTimeout
	}
	for _, dir := range []string{s.root, filepath.Join(s.root, "snapshots"), s.journal.dir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open snapshotter: %w", err)
		}
	}
	if err := s.openRoute(); err != nil {
		return nil, err
	}
	dtype, err := fs.SupportsDType(s.root)
	if err != nil {
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	if !dtype {
		return nil, fmt.Errorf("file system of %s has no d_type, which overlay needs: choose another root (xfs: format with ftype=1): %w", s.root, errdefs.ErrFailedPrecondition)
	}
	s.overlayOptions = overlayOptions(s.root, s.log)
	return s, s.openMetadata()
}

func (s *Snapshotter) openMetadata() error {
	db := s.database()
	ms, err := storage.NewMetaStore(db, func(o *bolt.Options) error {
		o.Timeout = openTimeout
		return nil
	})
	if err != nil {
		return fmt.Errorf("open %s: %w", db, err)
	}
	s.ms = ms
	err = ms.WithTransaction(context.Background(), false, func(context.Context) error { return nil })
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("%s is locked by another process: stop the other coffer-snapshotter or give this one its own root: %w", db, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", db, err)
	}
	return nil
}

// overlayOptions are the options that containerd's own overlay snapshotter adds
// to its mounts on this kernel.
func overlayOptions(root string, log *slog.Logger) []string {
	var options []string
	userxattr, err := overlayutils.NeedsUserXAttr(root)
	if err != nil {
		log.Warn("cannot tell whether overlay needs userxattr", "assumed", userxattr, "err", err)
	}
	if userxattr {
		options = append(options, "userxattr")
	}
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		options = append(options, "index=off")
	}
	return options
}

// Close closes the metadata. Calls that are still running fail.
func (s *Snapshotter) Close() error { return s.ms.Close() }

// Stat returns the snapshot named name, active or committed. Where containerd's
// unpacker asks for an image layer that is not here yet, it blocks until it is,
// and fails with the reason if it cannot be had.
func (s *Snapshotter) Stat(ctx context.Context, name string) (snapshots.Info, error) {
	var id string
	info, err := retried(ctx, s, name, func() (info snapshots.Info, err error) {
		err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
			id, info, _, err = storage.GetInfo(ctx, name)
			return err
		})
		return info, err
	})
	if err != nil || !s.pending(id, info) || !s.waits(ctx, name) {
		return info, err
	}
	if err := s.awaitLayer(ctx, name); err != nil {
		return snapshots.Info{}, s.outOfSpace(err)
	}
	return info, nil
}

// Update changes labels. The label containerd.io/snapshot.ref of a committed
// snapshot stays, since containerd finds an image layer by it in the next
// namespace.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, old, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		if err != nil {
			return err
		}
		ref := old.Labels[snapshots.LabelSnapshotRef]
		if old.Kind != snapshots.KindCommitted || ref == "" || updated.Labels[snapshots.LabelSnapshotRef] == ref {
			return nil
		}
		kept := snapshots.Info{Name: info.Name, Labels: map[string]string{snapshots.LabelSnapshotRef: ref}}
		updated, err = storage.UpdateInfo(ctx, kept, "labels."+snapshots.LabelSnapshotRef)
		return err
	})
	return updated, s.outOfSpace(err)
}

// outOfSpace gives an error its class where the disk of root is full.
func (s *Snapshotter) outOfSpace(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	return fmt.Errorf("out of space in %s: make room there or choose another root: %w: %w", s.root, err, errdefs.ErrResourceExhausted)
}

// Usage returns what the snapshot itself holds, without its parents: measured
// for an active one, stored for a committed one.
func (s *Snapshotter) Usage(ctx context.Context, name string) (usage snapshots.Usage, err error) {
	var id string
	var info snapshots.Info
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, usage, err = storage.GetInfo(ctx, name)
		return err
	})
	if err != nil {
		return usage, err
	}
	if info.Kind != snapshots.KindActive {
		return s.layerUsage(id, info, usage)
	}
	du, err := fs.DiskUsage(ctx, s.upper(id))
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("measure snapshot %s: %w", name, err)
	}
	return snapshots.Usage(du), nil
}

// Walk calls fn for every snapshot that matches the filters. No transaction is
// open meanwhile, so fn may call the snapshotter.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	var found []snapshots.Info
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return ignoreEmpty(storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			found = append(found, info)
			return nil
		}, filters...))
	})
	if err != nil {
		return err
	}
	for i := range found {
		if err := fn(ctx, found[i]); err != nil {
			return err
		}
	}
	return nil
}

// ignoreEmpty drops the NotFound with which storage answers while no snapshot
// was ever made.
func ignoreEmpty(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (s *Snapshotter) database() string       { return filepath.Join(s.root, "metadata.db") }
func (s *Snapshotter) dir(id string) string   { return filepath.Join(s.root, "snapshots", id) }
func (s *Snapshotter) upper(id string) string { return filepath.Join(s.dir(id), "fs") }
func (s *Snapshotter) work(id string) string  { return filepath.Join(s.dir(id), "work") }
