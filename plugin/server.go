// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package plugin is coffer's side of containerd's plugin contract: the gRPC
// service snapshots.v1 that containerd's proxy plugin talks to, and the part of
// containerd's configuration that registers it. It knows nothing of images and
// layers, and must not import imagepull, cdh, attester or kbs.
package plugin

import (
	"context"
	"log/slog"
	"runtime/debug"
	"slices"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// Options of a server. The zero value is ready to use.
type Options struct {
	// Logger; nil discards.
	Logger *slog.Logger
	// Metrics that the calls are counted in; nil counts nothing.
	Metrics *Metrics
}

// NewServer returns a gRPC server that serves sn as containerd's snapshots.v1.
// Errors keep their errdefs class on the wire. A panic in a call fails that call
// and no other. The caller serves and stops it; sn stays the caller's.
func NewServer(sn snapshots.Snapshotter, o Options) *grpc.Server {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := recoverer{log}
	unary, stream := []grpc.UnaryServerInterceptor{r.unary}, []grpc.StreamServerInterceptor{r.stream}
	if m := o.Metrics; m != nil { // outside, so that a panic is an error there
		unary, stream = slices.Insert(unary, 0, m.unary), slices.Insert(stream, 0, m.stream)
	}
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(unary...), grpc.ChainStreamInterceptor(stream...))
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
	return server
}

type recoverer struct{ log *slog.Logger }

func (r recoverer) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
	defer r.recover(info.FullMethod, &err)
	resp, err := next(ctx, req)
	return resp, plain(err)
}

func (r recoverer) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer r.recover(info.FullMethod, &err)
	return plain(next(srv, stream))
}

// plain returns the status of an error without details. Those hold the classes
// in the error once more, and containerd would print them behind its text.
func plain(err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(errgrpc.ToGRPC(err))
	return status.Error(s.Code(), s.Message())
}

func (r recoverer) recover(method string, err *error) {
	p := recover()
	if p == nil {
		return
	}
	r.log.Error("panic in snapshotter", "method", method, "err", p, "stack", string(debug.Stack()))
	*err = errgrpc.ToGRPCf(errdefs.ErrInternal, "%s: snapshotter failed unexpectedly; its log has the stack: please report it", method)
}
