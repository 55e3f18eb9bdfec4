// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// An image layer is committed before its content is here, pending: its folder
// has no fs. It gets one by the Stat with which containerd's unpacker makes sure
// of a layer, and at the latest when a container needs it.

// awaitTimeout is how long the unpacker may take from Prepare to Stat.
const awaitTimeout = 10 * time.Second

// awaited counts, by name, the pending layers that Prepare has just answered
// for and that nobody has asked Stat for so far.
type awaited struct {
	mu     sync.Mutex
	layers map[string]expected // guarded by mu
}

type expected struct {
	asks  int
	until time.Time
}

func (a *awaited) add(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.layers[name]
	if time.Now().After(e.until) {
		e.asks = 0
	}
	a.layers[name] = expected{e.asks + 1, time.Now().Add(awaitTimeout)}
}

// take says whether a Stat of name is expected, and counts it.
func (a *awaited) take(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.layers[name]
	if !ok {
		return false
	}
	e.asks--
	if e.asks > 0 {
		a.layers[name] = e
	} else {
		delete(a.layers, name)
	}
	return time.Now().Before(e.until)
}

func (a *awaited) drop(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.layers, name)
}

// waits says whether a Stat of the layer name wants the layer, and not only to
// list it. A pull by CRI carries its lease. Others lose theirs on the way through
// containerd: of them the first Stat after Prepare counts.
func (s *Snapshotter) waits(ctx context.Context, name string) bool {
	taken := s.awaited.take(name)
	_, leased := leases.FromContext(ctx)
	return taken || leased
}

// pending says whether the snapshot is an image layer without its content.
func (s *Snapshotter) pending(id string, info snapshots.Info) bool {
	if _, ok := layerChain(info.Name); !ok || info.Kind != snapshots.KindCommitted {
		return false
	}
	_, err := os.Stat(s.upper(id))
	return errors.Is(err, fs.ErrNotExist)
}

// awaitLayer gets the layer name and what is below it.
func (s *Snapshotter) awaitLayer(ctx context.Context, name string) error {
	err := s.pullGone(ctx, name)
	if errdefs.IsNotFound(err) {
		// The unpacker would take it for a snapshot that is gone again, ask
		// anew, and lose the reason.
		return fmt.Errorf("%s: not found: %w", strings.TrimSuffix(err.Error(), ": not found"), errdefs.ErrFailedPrecondition)
	}
	return err
}

// usageFile holds the size and number of inodes of a layer that has been pulled.
func (s *Snapshotter) usageFile(id string) string { return filepath.Join(s.dir(id), "usage") }

func writeUsage(path string, u snapshots.Usage) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := fmt.Fprintf(f, "%d %d\n", u.Size, u.Inodes); err != nil {
		return err
	}
	return f.Sync()
}

// layerUsage is what was stored for a committed snapshot, or for a layer when it
// was pulled. A pending layer has none: containerd asks again for what it did
// not find, and keeps what it was told.
func (s *Snapshotter) layerUsage(id string, info snapshots.Info, stored snapshots.Usage) (u snapshots.Usage, err error) {
	if s.pending(id, info) {
		return u, fmt.Errorf("usage of layer %s, which is not pulled yet: %w", info.Name, errdefs.ErrNotFound)
	}
	b, err := os.ReadFile(s.usageFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return stored, nil
	}
	if err != nil {
		return u, fmt.Errorf("usage of snapshot %s: %w", info.Name, err)
	}
	if _, err := fmt.Sscanf(string(b), "%d %d\n", &u.Size, &u.Inodes); err != nil {
		return u, fmt.Errorf("usage of snapshot %s: %s: %w", info.Name, s.usageFile(id), err)
	}
	return u, nil
}
