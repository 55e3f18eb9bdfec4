// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// checkShared wants one containerd, and one name in it, for the snapshotter: each
// removes every snapshot that it does not know.
func checkShared(_ context.Context, n *node) []Finding {
	d := &n.containerd
	var names []string
	for _, name := range slices.Sorted(maps.Keys(d.config.table("proxy_plugins"))) {
		if d.config.str("proxy_plugins", name, "address") == n.snapshotter.Address {
			names = append(names, name)
		}
	}
	if len(names) > 1 {
		return []Finding{{
			Level: Problem, Text: fmt.Sprintf("containerd knows one snapshotter under the names %s: each removes what the others made", strings.Join(names, ", ")),
			Fix: "in " + d.last("proxy_plugins", names[0]) + ": keep one [proxy_plugins.…] with this address\n" + restart,
		}}
	}
	for _, o := range n.others {
		for name := range o.config.table("proxy_plugins") {
			if o.config.str("proxy_plugins", name, "address") == n.snapshotter.Address {
				return []Finding{{
					Level: Problem, Text: fmt.Sprintf("a second containerd (process %d, %s) uses the same snapshotter: each removes what the other made", o.pid, o.mainFile),
					Fix: "give one of them a coffer-snapshotter of its own, with its own root and address",
				}}
			}
		}
	}
	return []Finding{{Level: OK, Text: "one containerd uses the snapshotter"}}
}

// checkLeftovers looks for what interrupted work left and nothing has taken away.
func checkLeftovers(ctx context.Context, n *node) (found []Finding) {
	if noted, err := os.ReadDir(filepath.Join(n.snapshotter.Root, "layers")); err == nil && len(noted) > 0 && !n.snapshotter.guestRoute() {
		found = append(found, Finding{
			Level: Warning, Text: fmt.Sprintf("%d layers are noted to be given up by coffer-guest, or are being pulled", len(noted)),
			Fix: "if it stays so: systemctl restart coffer-snapshotter, with coffer-guest running",
		})
	}
	if trash, err := filepath.Glob(filepath.Join(n.snapshotter.Root, "snapshots", "removed-*")); err == nil && len(trash) > 0 {
		found = append(found, Finding{Level: Warning, Text: fmt.Sprintf("%d folders of removed snapshots could not be deleted: is something mounted in them?", len(trash)), Fix: "findmnt | grep " + n.snapshotter.Root + "; systemctl restart coffer-snapshotter"})
	}
	found = append(found, n.staleExtracts(ctx)...)
	if len(found) == 0 {
		found = append(found, Finding{Level: OK, Text: "nothing is left over"})
	}
	return found
}

// staleExtracts finds active snapshots of pulls that have ended long ago.
func (n *node) staleExtracts(ctx context.Context) (found []Finding) {
	const old = time.Hour
	if n.containerd.err != nil || n.plugin() == nil {
		return nil
	}
	list, err := namespacesapi.NewNamespacesClient(n.containerd.conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil
	}
	for _, ns := range list.GetNamespaces() {
		ctx := namespaces.WithNamespace(ctx, ns.GetName())
		stream, err := snapshotsapi.NewSnapshotsClient(n.containerd.conn).List(ctx, &snapshotsapi.ListSnapshotsRequest{
			Snapshotter: n.snapshotter.Name, Filters: []string{"kind==active,name~=^extract-"},
		})
		if err != nil {
			return found
		}
		for {
			page, err := stream.Recv()
			if errors.Is(err, io.EOF) || err != nil {
				break
			}
			for _, s := range page.GetInfo() {
				if n.opts.Now().Sub(s.GetCreatedAt().AsTime()) > old {
					found = append(found, Finding{
						Level: Warning, Text: fmt.Sprintf("the snapshot %q of namespace %s is of a pull that did not end", s.GetName(), ns.GetName()),
						Fix: fmt.Sprintf("ctr -n %s snapshots --snapshotter %s rm %q", ns.GetName(), n.snapshotter.Name, s.GetName()),
					})
				}
			}
		}
	}
	return found
}
