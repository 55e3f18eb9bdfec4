// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	runc "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// serve answers on the listener that it inherits until the shim at address ends.
func serve(ctx context.Context, address, socket string) error {
	defer func() { _ = removeSocket(socket) }()
	c, err := readConfig()
	if err != nil {
		return err
	}
	listener, err := net.FileListener(os.NewFile(3, socket))
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	shim := ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { _ = server.Close() }))
	task.RegisterTTRPCTaskService(server, &tasks{TTRPCTaskService: task.NewTTRPCTaskClient(shim), config: c})
	if err := server.Serve(ctx, listener); !errors.Is(err, ttrpc.ErrServerClosed) {
		return err
	}
	return nil
}

// tasks are runc's, but for the file systems of their containers.
type tasks struct {
	task.TTRPCTaskService
	config
}

func (t *tasks) Create(ctx context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	if err := t.guestRoot(ctx, r); err != nil {
		return nil, err
	}
	r.Rootfs = nil
	options, err := typeurl.MarshalAny(&runc.Options{BinaryName: t.Runc, Root: t.RuncRoot})
	if err != nil {
		return nil, err
	}
	r.Options = &anypb.Any{TypeUrl: options.GetTypeUrl(), Value: options.GetValue()}
	resp, err := t.TTRPCTaskService.Create(ctx, r)
	if err != nil {
		return nil, errors.Join(err, t.removeBundle(r.ID))
	}
	return resp, nil
}

func (t *tasks) Delete(ctx context.Context, r *task.DeleteRequest) (*task.DeleteResponse, error) {
	resp, err := t.TTRPCTaskService.Delete(ctx, r)
	if err == nil && r.ExecID == "" {
		err = t.removeBundle(r.ID)
	}
	return resp, err
}
