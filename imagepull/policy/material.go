// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull/document"
)

// material is what a requirement needs to know, a key or a certificate: in
// the policy itself, or by URI.
type material struct {
	place string // in the policy
	data  []byte
	uri   string
}

// parseMaterial reads the members that are stem and one of the endings "Path",
// "Paths", "Data", "Datas"; at most one of them may be there. Data is base64,
// or PEM (or OpenPGP armor) as it is; check is asked about it.
func parseMaterial(f *fields, stem string, check func([]byte) error, endings ...string) []material {
	var out []material
	var found []string
	for _, ending := range endings {
		name := stem + ending
		if f.n.members[name] == nil {
			f.get(name)
			continue
		}
		found = append(found, name)
		values := []string{}
		if strings.HasSuffix(ending, "s") {
			values = f.texts(name)
		} else {
			values = append(values, f.text(name))
		}
		for _, v := range values {
			m := material{place: member(f.n.path, name)}
			var err error
			if strings.HasPrefix(ending, "Data") {
				if m.data, err = decodeData(v); err == nil {
					err = check(m.data)
				}
			} else {
				m.uri, err = v, document.CheckURI(v)
			}
			if err != nil {
				f.fail(name, "%w", err)
			}
			out = append(out, m)
		}
	}
	if len(found) > 1 {
		f.fail("", "give only one of %s", strings.Join(found, ", "))
	}
	return out
}

// decodeData takes base64 as containers/image writes it, and PEM as
// guest-components does.
func decodeData(s string) ([]byte, error) {
	if strings.Contains(s, "-----BEGIN ") {
		return []byte(s), nil
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s))
	if err != nil || len(b) == 0 {
		return nil, errors.New("neither base64 nor PEM")
	}
	return b, nil
}

// load returns the material's bytes.
func (m material) load(ctx context.Context, docs *document.Reader) ([]byte, error) {
	if m.uri == "" {
		return bytes.Clone(m.data), nil
	}
	b, err := docs.Get(ctx, m.uri)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", m.place, err)
	}
	return b, nil
}

// loadAll loads each and reads it with parse. What cannot be read is an
// InvalidArgument error that names the place.
func loadAll[T any](ctx context.Context, docs *document.Reader, in []material, parse func([]byte) (T, error)) ([]T, error) {
	var out []T
	for _, m := range in {
		b, err := m.load(ctx, docs)
		if err != nil {
			return nil, err
		}
		v, err := parse(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w: %w", m.place, m.uri, err, errdefs.ErrInvalidArgument)
		}
		out = append(out, v)
	}
	return out, nil
}
