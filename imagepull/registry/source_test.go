// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/conf"
)

// fickle is a source whose owner changes his mind.
type fickle struct {
	config *conf.Config
	err    error
	asked  int
}

func (c *fickle) Load(context.Context) (*conf.Config, error) {
	c.asked++
	return c.config, c.err
}

// Each pull goes by the configuration of its beginning.
func TestConfigSource(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	p := s.image(t, "a/b", "v1", "same", ocispec.Platform{})
	ref := s.host() + "/a/b:v1"
	source := &fickle{config: parseConf(t, "")}
	c := client(t, registry.Options{ConfigSource: source}, s)

	_, err := c.Fetch(t.Context(), ref, p.layer, 0)
	if !errdefs.IsFailedPrecondition(err) || source.asked != 0 {
		t.Errorf("a fetch before the configuration is known: %v, asked %d times", err, source.asked)
	}
	if _, _, err := pull(t, c, ref); err != nil {
		t.Fatal(err)
	}
	if source.asked != 1 {
		t.Errorf("one pull asks %d times", source.asked)
	}
	source.config = parseConf(t, "[[registry]]\nlocation = %q\nblocked = true\n", s.host())
	body, err := c.Fetch(t.Context(), ref, p.layer, 0)
	if err != nil {
		t.Errorf("a pull under way: %v", err)
	} else {
		_ = body.Close()
	}
	if _, _, err := pull(t, c, ref); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "is blocked") {
		t.Errorf("blocked meanwhile: %v", err)
	}
	source.config = parseConf(t, "[aliases]\n\"short\" = %q\n", s.host()+"/a/b")
	if _, _, err := pull(t, c, "short:v1"); err != nil {
		t.Errorf("by a new alias: %v", err)
	}
	source.err = fmt.Errorf("kbs: away: %w", errdefs.ErrUnavailable)
	_, _, err = pull(t, c, ref)
	if !errdefs.IsUnavailable(err) || err.Error() != "image "+ref+": kbs: away: unavailable" {
		t.Errorf("nobody knows whether it is blocked: %v", err)
	}
	var e *registry.Error
	if !errors.As(err, &e) || e.Temporary {
		t.Error("the source is asked again and again")
	}
}
