// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package plugin_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-cc/coffer/plugin"
	"github.com/coffer-cc/coffer/snapshotter"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	_ "github.com/containerd/containerd/v2/pkg/testutil" // the flag -test.root of the suite
)

// TestContainerdSuite runs containerd's own snapshotter tests as containerd
// would talk to coffer: by its proxy, over a unix socket.
func TestContainerdSuite(t *testing.T) { //nolint:paralleltest // the suite changes the umask
	if os.Getuid() != 0 {
		if strings.Contains(os.Getenv("REQUIRE"), "root") {
			t.Fatal("REQUIRE names root, and this is not root")
		}
		t.Skip("mounting needs root")
	}
	for _, route := range []snapshotter.Route{snapshotter.Local, snapshotter.Guest} {
		t.Run(string(route), func(t *testing.T) {
			testsuite.SnapshotterSuite(t, "overlayfs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
				sn, err := snapshotter.Open(root, nil, nil, snapshotter.Options{Route: route})
				if err != nil {
					return nil, nil, err
				}
				remote, closeServer, err := serve(t.TempDir(), sn)
				if err != nil {
					return nil, nil, errors.Join(err, sn.Close())
				}
				return remote, func() error { return errors.Join(closeServer(), sn.Close()) }, nil
			})
		})
	}
}

// serve serves sn on a socket in dir and returns a client of it.
func serve(dir string, sn snapshots.Snapshotter) (snapshots.Snapshotter, func() error, error) {
	return serveWith(dir, sn, plugin.Options{})
}

func serveWith(dir string, sn snapshots.Snapshotter, o plugin.Options) (snapshots.Snapshotter, func() error, error) {
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, nil, err
	}
	server := plugin.NewServer(sn, o)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		server.Stop()
		return nil, nil, errors.Join(err, <-served)
	}
	remote := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), plugin.Name)
	return remote, func() error {
		err := conn.Close()
		server.GracefulStop()
		return errors.Join(err, <-served)
	}, nil
}
