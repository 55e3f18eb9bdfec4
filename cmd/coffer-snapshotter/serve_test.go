// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestServeAlone starts the daemon without guest and without containerd: it
// serves, and says what is missing.
func TestServeAlone(t *testing.T) {
	// Socket paths are short.
	dir, err := os.MkdirTemp("", "sn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = notify.Close() })
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	config := write(t, fmt.Sprintf("root = '%[1]s/root'\naddress = '%[1]s/s'\ncontainerd_address = '%[1]s/c'\nguest_socket = '%[1]s/g'\n[log]\nlevel = 'error'", dir))

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"-c", config}, os.Stdout) }()
	wantNotify(t, notify, "READY=1")

	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "s"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "coffer")
	nsctx := namespaces.WithNamespace(ctx, "default")
	if _, err := sn.Prepare(nsctx, "key", ""); err != nil {
		t.Error(err)
	}
	chain := digest.FromString("chain")
	labels := map[string]string{snapshots.LabelSnapshotRef: chain.String()}
	err = prepareLayer(nsctx, sn, chain, labels)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "list manifests of containerd namespace default") {
		t.Errorf("without containerd: got %v", err)
	}
	chain = digest.FromString("another chain")
	labels[snapshots.LabelSnapshotRef] = chain.String()
	labels[snapshotters.TargetRefLabel], labels[snapshotters.TargetManifestDigestLabel] = "r.example/a:1", chain.String()
	err = prepareLayer(nsctx, sn, chain, labels)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "coffer-guest is not running") {
		t.Errorf("without guest: got %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	wantNotify(t, notify, "STOPPING=1")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// prepareLayer does with a layer what containerd's unpacker does.
func prepareLayer(ctx context.Context, sn snapshots.Snapshotter, chain digest.Digest, labels map[string]string) error {
	if _, err := sn.Prepare(ctx, "extract", "", snapshots.WithLabels(labels)); !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("prepare: %w", err)
	}
	_, err := sn.Stat(ctx, chain.String())
	return err
}

func wantNotify(t *testing.T, notify *net.UnixConn, want string) {
	t.Helper()
	buf := make([]byte, 64)
	n, err := notify.Read(buf)
	if err != nil || string(buf[:n]) != want {
		t.Errorf("systemd was told %q, %v, want %s", buf[:n], err, want)
	}
}
