// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/api"
)

// Client calls the puller on a unix socket, for layers and for images. It dials for each call: that
// outlives a restart of the guest, and closing the connection is how ttrpc
// tells the server that a caller has given up. It is safe for concurrent use.
type Client struct {
	socket string

	mu     sync.Mutex
	closed bool                   // guarded by mu
	open   map[*ttrpc.Client]bool // calls that run; guarded by mu
}

// NewClient makes a client of the guest at socket, a path with or without
// unix://. It does not dial.
func NewClient(socket string) *Client {
	return &Client{socket: strings.TrimPrefix(socket, "unix://"), open: make(map[*ttrpc.Client]bool)}
}

// Close ends running calls; later ones fail.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var errs []error
	for conn := range c.open {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// PullLayer asks the guest for a layer of image and returns where it is, its
// bytes on disk and its inodes. Errors have the puller's class; Unavailable is
// also a guest that is not there or went away during the call.
func (c *Client) PullLayer(ctx context.Context, image string, manifest, chainID digest.Digest) (path string, size, inodes int64, err error) {
	err = c.call(ctx, func(p api.LayerPullerService) error {
		resp, err := p.PullLayer(ctx, &api.PullLayerRequest{Image: image, ManifestDigest: manifest.String(), ChainId: chainID.String()})
		path, size, inodes = resp.GetPath(), resp.GetSize(), resp.GetInodes()
		return err
	})
	return path, size, inodes, err
}

// RemoveLayer asks the guest to take a layer out of its store.
func (c *Client) RemoveLayer(ctx context.Context, chainID digest.Digest) error {
	return c.call(ctx, func(p api.LayerPullerService) error {
		_, err := p.RemoveLayer(ctx, &api.RemoveLayerRequest{ChainId: chainID.String()})
		return err
	})
}

// AdmitImage asks the guest whether an image that containerd has may be used
// under this name: PermissionDenied is its policy's no. manifest is that of the
// platform, index what it was chosen from, or empty.
func (c *Client) AdmitImage(ctx context.Context, image string, manifest, index digest.Digest) error {
	return c.call(ctx, func(p api.LayerPullerService) error {
		_, err := p.AdmitImage(ctx, &api.AdmitImageRequest{Image: image, ManifestDigest: manifest.String(), IndexDigest: index.String()})
		return err
	})
}

// AdmitsAll asks the guest whether AdmitImage needs to be called at all. Where
// it is true that holds until the guest is started anew.
func (c *Client) AdmitsAll(ctx context.Context) (all bool, err error) {
	err = c.call(ctx, func(p api.LayerPullerService) error {
		resp, err := p.AdmitsAll(ctx, &api.AdmitsAllRequest{})
		all = resp.GetAll()
		return err
	})
	return all, err
}

func (c *Client) call(ctx context.Context, do func(api.LayerPullerService) error) error {
	return c.dial(ctx, func(conn *ttrpc.Client) error { return do(api.NewLayerPullerClient(conn)) })
}

// dial makes a connection for one call.
func (c *Client) dial(ctx context.Context, do func(*ttrpc.Client) error) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return c.dialError(ctx, err)
	}
	client := ttrpc.NewClient(conn)
	if !c.add(client) {
		return errors.Join(fmt.Errorf("call coffer-guest: client is closed: %w", errdefs.ErrUnavailable), client.Close())
	}
	err = do(client)
	c.remove(client)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("call coffer-guest: %w", context.Cause(ctx))
	case errors.Is(err, ttrpc.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("coffer-guest went away during the call on %s; see its log (journalctl -u coffer-guest), then try again: %w", c.socket, errdefs.ErrUnavailable)
	}
	return errgrpc.ToNative(err)
}

func (c *Client) dialError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("call coffer-guest: %w", context.Cause(ctx))
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("coffer-guest is not running: no answer on %s; start it (systemctl start coffer-guest): %w", c.socket, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("call coffer-guest: %w: %w", err, errdefs.ErrUnavailable)
}

func (c *Client) add(client *ttrpc.Client) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.open[client] = true
	}
	return !c.closed
}

func (c *Client) remove(client *ttrpc.Client) {
	c.mu.Lock()
	delete(c.open, client)
	c.mu.Unlock()
	_ = client.Close()
}
