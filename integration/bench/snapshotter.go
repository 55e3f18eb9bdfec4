// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/coffer-cc/coffer/imagepull/service"
	"github.com/coffer-cc/coffer/plugin"
	"github.com/coffer-cc/coffer/snapshotter"
)

// The snapshotters that are measured.
const (
	cofferSnapshotter  = "coffer"
	overlaySnapshotter = "overlayfs"
)

// folders stands in for a guest that has every layer at once, and no image policy.
type folders struct{ dir string }

func (f folders) PullLayer(_ context.Context, _ string, _, chain digest.Digest) (string, int64, int64, error) {
	dir := filepath.Join(f.dir, chain.Encoded())
	return dir, 4096, 1, os.MkdirAll(dir, 0o755)
}

func (f folders) RemoveLayer(_ context.Context, chain digest.Digest) error {
	return os.RemoveAll(filepath.Join(f.dir, chain.Encoded()))
}

func (f folders) AdmitsAll() bool { return true }

func (f folders) AdmitImage(context.Context, string, digest.Digest, digest.Digest) error { return nil }

// nobody is not asked for images: labels name them, and there is no image policy.
type nobody struct{}

func (nobody) FindImage(_ context.Context, chain digest.Digest) (string, digest.Digest, error) {
	return "", "", fmt.Errorf("layer %s has no labels", chain)
}

func (nobody) FindLayers(_ context.Context, chain digest.Digest) ([]map[string]string, error) {
	return nil, fmt.Errorf("layer %s is there", chain)
}

func (nobody) FindBlob(_ context.Context, chain digest.Digest) (ocispec.Descriptor, bool, error) {
	return ocispec.Descriptor{}, false, fmt.Errorf("layer %s is there", chain)
}

func (nobody) ImagesOf(_ context.Context, chain digest.Digest, _ func(name string, manifest, index digest.Digest) error) error {
	return fmt.Errorf("layer %s is in no image", chain)
}

// openSnapshotter opens one in dir. coffer's is wired as coffer-snapshotter does.
func openSnapshotter(ctx context.Context, kind, dir, socket string) (_ snapshots.Snapshotter, closeGuest func() error, err error) {
	root := filepath.Join(dir, "root")
	if kind == overlaySnapshotter {
		sn, err := overlay.NewSnapshotter(root, overlay.AsynchronousRemove) // as containerd does unless told otherwise
		return sn, func() error { return nil }, err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return nil, nil, err
	}
	service.RegisterLayerPuller(server, folders{filepath.Join(dir, "guest")})
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", "@"+socket+"-guest")
	if err != nil {
		return nil, nil, err
	}
	go func() { _ = server.Serve(ctx, l) }() // it ends with Close
	guest := service.NewClient("@" + socket + "-guest")
	closeGuest = func() error { return errors.Join(guest.Close(), server.Close()) }
	sn, err := snapshotter.Open(root, guest, nobody{}, snapshotter.Options{Admitter: guest, Images: nobody{}})
	if err != nil {
		return nil, nil, errors.Join(err, closeGuest())
	}
	return sn, closeGuest, nil
}

// serveSnapshotter is the other side of startSnapshotter: it serves until its
// input ends.
func serveSnapshotter(ctx context.Context, kind, dir, socket string) (err error) {
	sn, closeGuest, err := openSnapshotter(ctx, kind, dir, socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sn.Close(), closeGuest()) }()
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", "@"+socket)
	if err != nil {
		return err
	}
	server := plugin.NewServer(sn, plugin.Options{Metrics: plugin.NewMetrics()})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // however it ends, it ends
		server.Stop()
	}()
	fmt.Println("ready")
	return server.Serve(l)
}

// snapshotterProcess is a snapshotter in a process of its own, behind the proxy
// through which containerd speaks to one.
type snapshotterProcess struct {
	snapshots.Snapshotter
	kind string
	conn *grpc.ClientConn
	cmd  *exec.Cmd
	in   io.Closer
}

func startSnapshotter(ctx context.Context, kind, dir string) (_ *snapshotterProcess, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// A name, not a file: folders may be deeper than a socket's path can be.
	socket := fmt.Sprintf("coffer-bench-%d-%s", os.Getpid(), kind)
	cmd, err := self(ctx, "snapshotter", kind, dir, socket)
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = nil // it ends with its input
	s := &snapshotterProcess{kind: kind, cmd: cmd}
	if s.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, fmt.Errorf("snapshotter %s does not start: %w", kind, err)
	}
	s.conn, err = grpc.NewClient("unix-abstract:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	s.Snapshotter = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(s.conn), kind)
	return s, nil
}

// stop ends it, and what it has on disk is whole.
func (s *snapshotterProcess) stop() error {
	var err error
	if s.conn != nil {
		err = s.conn.Close()
	}
	return errors.Join(err, s.in.Close(), s.cmd.Wait())
}
