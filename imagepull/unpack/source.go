// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// source counts and bounds the stream, remembers its error, and ends it when
// the context ends.
type source struct {
	ctx   context.Context //nolint:containedctx // lives as long as one call of Apply
	r     io.Reader
	limit int64 // bytes still allowed
	read  int64 // bytes so far
	err   error // of r, other than io.EOF
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	s.read += int64(n)
	if s.limit -= int64(n); s.limit < 0 {
		return n, fmt.Errorf("the tar stream is larger than %d bytes: %w", s.read+s.limit, limited("max_bytes"))
	}
	return n, err
}

// limited is the end of the error about a limit that can be raised.
func limited(option string) error {
	return fmt.Errorf("raise image.limits.%s of coffer-guest if the layer is to be trusted: %w", option, errdefs.ErrInvalidArgument)
}
