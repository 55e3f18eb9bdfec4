// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull/registry/conf"
)

// ConfigSource gives the registries configuration as it is now; a
// *document.Loader[conf.Config] is one. Its errors carry a class.
type ConfigSource interface {
	Load(ctx context.Context) (*conf.Config, error)
}

// configuration is one that does not change, or the last that a source gave.
type configuration struct {
	source ConfigSource // nil if it does not change
	fixed  *conf.Config
	last   atomic.Pointer[conf.Config]
}

// reload asks the source. Each pull begins so, and goes on by what it said.
func (c *configuration) reload(ctx context.Context) error {
	if c.source == nil {
		return nil
	}
	config, err := c.source.Load(ctx)
	if err != nil {
		return err
	}
	c.last.Store(config)
	return nil
}

// now is the configuration to go by. There is an error where there should be
// one and nobody has asked for it: without it, a blocked registry would be asked.
func (c *configuration) now() (*conf.Config, error) {
	if c.source == nil {
		return c.fixed, nil
	}
	config := c.last.Load()
	if config == nil {
		return nil, fmt.Errorf("the registries configuration was not read yet: resolve an image first: %w", errdefs.ErrFailedPrecondition)
	}
	return config, nil
}

// errConfiguration says that the configuration cannot be had. Its source has
// tried long enough, so that it is not temporary.
func errConfiguration(ctx context.Context, r Reference, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return &Error{What: "image " + r.String(), text: err.Error(), class: errdefs.Resolve(err)}
}
