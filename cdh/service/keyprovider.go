// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"github.com/coffer-cc/coffer/cdh/api"
	"github.com/coffer-cc/coffer/cdh/keywrap"
)

// KeyProvider is the full name of the key provider service. Its two methods are
// UnWrapKey and WrapKey, with the messages of cdh/api.
const KeyProvider = "keyprovider.KeyProviderService"

// keyProviderAlias is how Azure's containers spell the same service.
const keyProviderAlias = "key_provider.KeyProviderService"

// registerKeyProvider registers by hand: see cdh/api/keyprovider.proto.
func registerKeyProvider(server *ttrpc.Server, s *services) {
	type call func(context.Context, *api.KeyProviderKeyWrapProtocolInput) (*api.KeyProviderKeyWrapProtocolOutput, error)
	method := func(serve call) ttrpc.Method {
		return func(ctx context.Context, unmarshal func(any) error) (any, error) {
			var req api.KeyProviderKeyWrapProtocolInput
			if err := unmarshal(&req); err != nil {
				return nil, err
			}
			return serve(ctx, &req)
		}
	}
	desc := &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"UnWrapKey": method(s.unwrapKey),
		"WrapKey":   method(s.wrapKey),
	}}
	server.RegisterService(KeyProvider, desc)
	server.RegisterService(keyProviderAlias, desc)
}

func (s *services) unwrapKey(ctx context.Context, req *api.KeyProviderKeyWrapProtocolInput) (
	*api.KeyProviderKeyWrapProtocolOutput, error,
) {
	packet, err := keywrap.ParseUnwrapRequest(req.GetKeyProviderKeyWrapProtocolInput())
	if err != nil {
		return nil, s.refuse(ctx, "UnWrapKey", fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err))
	}
	privateOptions, err := s.hub.UnwrapKey(ctx, packet)
	if err != nil {
		return nil, s.refuse(ctx, "UnWrapKey", err)
	}
	defer clear(privateOptions)
	return &api.KeyProviderKeyWrapProtocolOutput{
		KeyProviderKeyWrapProtocolOutput: keywrap.MarshalUnwrapResponse(privateOptions),
	}, nil
}

func (s *services) wrapKey(ctx context.Context, _ *api.KeyProviderKeyWrapProtocolInput) (
	*api.KeyProviderKeyWrapProtocolOutput, error,
) {
	return nil, s.refuse(ctx, "WrapKey", fmt.Errorf("%w: the hub only unwraps; encrypt images on the publisher's side with "+
		"coffer encrypt", errdefs.ErrNotImplemented))
}
