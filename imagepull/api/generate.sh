#!/bin/sh
# SPDX-FileCopyrightText: The coffer authors
# SPDX-License-Identifier: Apache-2.0
#
# Writes the Go code of layerpuller.proto. Needs protoc (Debian:
# protobuf-compiler); the plugins are the tools of go.mod.
set -eu
cd "$(dirname "$0")"
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc
PATH="$bin:$PATH" protoc -I . --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative layerpuller.proto
# protoc's own version differs between machines; the code does not depend on it.
sed -i '/^\/\/ \tprotoc  *v/d' layerpuller.pb.go
# The ttrpc plugin leaves the licence lines of the proto out.
{ head -n 2 layerpuller.proto; echo; cat layerpuller_ttrpc.pb.go; } >"$bin/out"
cp "$bin/out" layerpuller_ttrpc.pb.go
