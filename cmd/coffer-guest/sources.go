// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/attester/initdata"
	"github.com/coffer-cc/coffer/cdh"
)

// initDataScheme begins the names of the init-data's entries.
const initDataScheme = "initdata:///"

// sources get what configuration and policy name by URI. They are not for what
// an image names: its keys are the KBS's.
type sources struct {
	initData *initdata.Document // nil where there is none
	kbs      cdh.ResourceGetter
}

// GetResource returns an entry of the init-data, and else asks the KBS. The
// result belongs to the caller.
func (s sources) GetResource(ctx context.Context, uri string) ([]byte, error) {
	if strings.HasPrefix(uri, initDataScheme) {
		return s.entry(uri)
	}
	return s.kbs.GetResource(ctx, uri)
}

func (s sources) entry(uri string) ([]byte, error) {
	if s.initData == nil {
		return nil, fmt.Errorf("no init-data is configured: set initdata: %w", errdefs.ErrFailedPrecondition)
	}
	name := strings.TrimPrefix(uri, initDataScheme)
	b, ok := s.initData.Entry(name)
	if !ok {
		return nil, fmt.Errorf("the init-data has no entry %.200q; it has %q: %w", name, s.initData.Names(), errdefs.ErrNotFound)
	}
	return b, nil
}

// read returns what is here from the start: an entry of the init-data, or a
// file.
func (s sources) read(uri string) ([]byte, error) {
	if strings.HasPrefix(uri, initDataScheme) {
		b, err := s.entry(uri)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", uri, err)
		}
		return b, nil
	}
	return os.ReadFile(strings.TrimPrefix(uri, "file://"))
}

// isLocal tells what can be read at the start from a resource of the KBS.
func isLocal(uri string) bool {
	return !strings.HasPrefix(uri, "kbs:") && !strings.HasPrefix(uri, "kbs+")
}
