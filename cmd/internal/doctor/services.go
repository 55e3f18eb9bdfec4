// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/coffer-cc/coffer/imagepull/service"
)

// checkSocket finds what is wrong with a socket before anybody speaks on it.
func checkSocket(ctx context.Context, path, unit string) *Finding {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &Finding{Level: Problem, Text: fmt.Sprintf("there is no socket %s: %s does not run, or has another address", path, unit), Fix: "systemctl enable --now " + unit}
	case err != nil:
		return &Finding{Level: Problem, Text: err.Error(), Fix: "run coffer doctor as root"}
	case st.Mode()&fs.ModeSocket == 0:
		return &Finding{Level: Problem, Text: path + " is not a socket", Fix: "rm " + path + "; systemctl restart " + unit}
	case st.Mode().Perm()&0o077 != 0:
		return &Finding{Level: Problem, Text: fmt.Sprintf("others than root may connect to %s (mode %o)", path, st.Mode().Perm()), Fix: "chmod 600 " + path}
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return &Finding{Level: Problem, Text: fmt.Sprintf("nobody answers: %v", err), Fix: "systemctl restart " + unit + "; its log: journalctl -u " + unit}
	}
	_ = conn.Close() // it answered
	return nil
}

func checkSnapshotter(ctx context.Context, n *node) []Finding {
	const unit = "coffer-snapshotter"
	address := n.snapshotter.Address
	if f := checkSocket(ctx, address, unit); f != nil {
		return []Finding{*f}
	}
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		defer func() { _ = conn.Close() }() // it was only read
		_, err = snapshotsapi.NewSnapshotsClient(conn).Stat(namespaces.WithNamespace(ctx, "default"), &snapshotsapi.StatSnapshotRequest{Key: "coffer-doctor"})
		err = errgrpc.ToNative(err)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return []Finding{{Level: Problem, Text: fmt.Sprintf("coffer-snapshotter on %s: %v", address, err), Fix: "systemctl restart coffer-snapshotter; its log: journalctl -u coffer-snapshotter"}}
	}
	return []Finding{{Level: OK, Text: "coffer-snapshotter answers on " + address}}
}

// checkGuest asks coffer-guest for its images, which costs it nothing. In the
// guest route there is one in each virtual machine, and none to ask.
func checkGuest(ctx context.Context, n *node) []Finding {
	const unit = "coffer-guest"
	if n.snapshotter.guestRoute() {
		return nil
	}
	socket := n.snapshotter.GuestSocket
	if f := checkSocket(ctx, socket, unit); f != nil {
		return []Finding{*f}
	}
	client := service.NewClient(socket)
	defer func() { _ = client.Close() }() // no call runs any more
	_, usage, err := client.ListImages(ctx)
	if err != nil {
		return []Finding{{Level: Problem, Text: fmt.Sprintf("coffer-guest on %s: %v", socket, err), Fix: "systemctl restart coffer-guest; its log: journalctl -u coffer-guest"}}
	}
	return []Finding{{Level: OK, Text: fmt.Sprintf("coffer-guest answers on %s and has %d layers of %d images", socket, usage.Layers, usage.Images)}}
}
