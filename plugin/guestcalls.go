// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"

	"github.com/coffer-cc/coffer/snapshotter"
	"github.com/opencontainers/go-digest"
)

// Puller returns p with its calls counted. A layer that is pulled in a call that
// is not a pull was gone below a container: that is a heal.
func (m *Metrics) Puller(p snapshotter.LayerPuller) snapshotter.LayerPuller {
	return countedPuller{m, p}
}

type countedPuller struct {
	metrics *Metrics
	snapshotter.LayerPuller
}

func (c countedPuller) PullLayer(ctx context.Context, image string, manifest, chainID digest.Digest) (path string, size, inodes int64, err error) {
	path, size, inodes, err = c.LayerPuller.PullLayer(ctx, image, manifest, chainID)
	c.count("pull_layer", err)
	if o, _ := ctx.Value(operationKey{}).(string); o != pullOperation {
		result := "ok"
		if err != nil {
			result = "failed"
		}
		c.metrics.heals.set.GetOrCreateCounter(c.metrics.heals.with("result", result)).Inc()
	}
	return path, size, inodes, err
}

func (c countedPuller) RemoveLayer(ctx context.Context, chainID digest.Digest) error {
	err := c.LayerPuller.RemoveLayer(ctx, chainID)
	c.count("remove_layer", err)
	return err
}

func (c countedPuller) count(call string, err error) {
	c.metrics.guest.set.GetOrCreateCounter(c.metrics.guest.with("call", call, "result", classOf(err))).Inc()
}
