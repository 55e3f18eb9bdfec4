// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"log/slog"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// refusal is an error of one class and one text. errgrpc would send each
// further class of a chain as a detail, and the client would see the text twice.
type refusal struct {
	class error
	text  string
}

func (r refusal) Error() string { return r.text }
func (r refusal) Unwrap() error { return r.class }

// refuse logs why a request is refused and returns the status to answer with.
func (s *services) refuse(ctx context.Context, method string, err error) error {
	s.log.LogAttrs(ctx, slog.LevelWarn, "request refused", slog.String("method", method), slog.Any("err", err))
	return errgrpc.ToGRPC(refusal{class: errdefs.Resolve(err), text: err.Error()})
}
