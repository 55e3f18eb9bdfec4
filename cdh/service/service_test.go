// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-cc/coffer/cdh"
	"github.com/coffer-cc/coffer/cdh/api"
	"github.com/coffer-cc/coffer/cdh/keywrap"
	"github.com/coffer-cc/coffer/cdh/service"
)

const (
	kid            = "kbs:///default/key/1"
	privateOptions = `{"symkey":"c2VjcmV0"}`
	manifest       = digest.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type resources map[string][]byte

func (r resources) GetResource(_ context.Context, uri string) ([]byte, error) {
	switch {
	case uri == "kbs:///default/key/denied":
		return nil, fmt.Errorf("kbs: %w: rule 1: %w", errdefs.ErrPermissionDenied, errors.New("inner"))
	case r[uri] == nil:
		return nil, fmt.Errorf("kbs: %s: %w", uri, errdefs.ErrNotFound)
	}
	return bytes.Clone(r[uri]), nil
}

type puller struct{}

func (puller) PullImage(_ context.Context, image, bundle string) (digest.Digest, error) {
	if image == "full" {
		return "", fmt.Errorf("out of space in %s: %w", bundle, errdefs.ErrResourceExhausted)
	}
	return manifest, nil
}

// dial serves the hub on a socket and returns a client of it.
func dial(t *testing.T, logger *slog.Logger) *ttrpc.Client {
	t.Helper()
	hub := cdh.NewHub(resources{
		kid:                      kek(),
		"kbs:///default/big/1":   make([]byte, 5<<20),
		"kbs:///default/wrong/1": make([]byte, keywrap.KEKSize),
	}, cdh.Options{})
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	service.Register(server, hub, puller{}, service.Options{Logger: logger})
	socket := filepath.Join(t.TempDir(), "cdh.sock")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.WithoutCancel(t.Context()), listener) }()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
		hub.Close()
	})
	return client
}

func kek() []byte { return bytes.Repeat([]byte{1}, keywrap.KEKSize) }

func packet(t *testing.T, kid string) []byte {
	t.Helper()
	p, err := keywrap.Wrap(kek(), kid, []byte(privateOptions), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func keyProvider(t *testing.T, client *ttrpc.Client, name, method string, input []byte) ([]byte, error) {
	t.Helper()
	var resp api.KeyProviderKeyWrapProtocolOutput
	err := client.Call(t.Context(), name, method, &api.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: input}, &resp)
	return resp.GetKeyProviderKeyWrapProtocolOutput(), err
}

func TestUnWrapKey(t *testing.T) {
	t.Parallel()
	client := dial(t, nil)
	for _, name := range []string{service.KeyProvider, "key_provider.KeyProviderService"} {
		out, err := keyProvider(t, client, name, "UnWrapKey", keywrap.MarshalUnwrapRequest(packet(t, kid)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(out, []byte(`{"keyunwrapresults":{"optsdata":[123,`)) {
			t.Errorf("optsdata is not an array of integers: %.40s", out)
		}
		got, err := keywrap.ParseUnwrapResponse(out)
		if err != nil || string(got) != privateOptions {
			t.Errorf("got %d bytes, error %v", len(got), err)
		}
	}
}

func TestUnWrapKeyErrors(t *testing.T) {
	t.Parallel()
	client := dial(t, nil)
	for _, tc := range []struct {
		name, method string
		input        []byte
		code         codes.Code
		text         string
	}{
		{"no payload", "UnWrapKey", nil, codes.InvalidArgument, "parse unwrap request"},
		{"no JSON", "UnWrapKey", []byte("x"), codes.InvalidArgument, "not a JSON object"},
		{"no packet", "UnWrapKey", []byte(`{"keyunwrapparams":{"dc":null}}`), codes.InvalidArgument, "annotation"},
		{"bad packet", "UnWrapKey", keywrap.MarshalUnwrapRequest([]byte("x")), codes.InvalidArgument, "annotation packet"},
		{
			"other provider", "UnWrapKey",
			keywrap.MarshalUnwrapRequest([]byte(`{"kid":"k","provider":"aliyun","wrapped_data":"AA=="}`)), codes.Unimplemented, "aliyun",
		},
		{"denied", "UnWrapKey", keywrap.MarshalUnwrapRequest(packet(t, "kbs:///default/key/denied")), codes.PermissionDenied, "rule 1"},
		{"no key", "UnWrapKey", keywrap.MarshalUnwrapRequest(packet(t, "kbs:///default/key/2")), codes.NotFound, "kbs:///default/key/2"},
		{"wrong key", "UnWrapKey", keywrap.MarshalUnwrapRequest(packet(t, "kbs:///default/wrong/1")), codes.DataLoss, "does not unwrap"},
		{"wrap", "WrapKey", nil, codes.Unimplemented, "coffer encrypt"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := keyProvider(t, client, service.KeyProvider, tc.method, tc.input)
			wantStatus(t, err, tc.code, tc.text)
		})
	}
}

func TestGetResource(t *testing.T) {
	t.Parallel()
	client := api.NewGetResourceServiceClient(dial(t, nil))
	resp, err := client.GetResource(t.Context(), &api.GetResourceRequest{ResourcePath: kid})
	if err != nil || !bytes.Equal(resp.GetResource(), kek()) {
		t.Errorf("got %d bytes, error %v", len(resp.GetResource()), err)
	}
	for _, tc := range []struct {
		path string
		code codes.Code
		text string
	}{
		{"", codes.InvalidArgument, "kbs:///repository/type/tag"},
		{"kbs:///default/key/absent", codes.NotFound, "kbs:///default/key/absent"},
		{"kbs:///default/key/denied", codes.PermissionDenied, "rule 1"},
		{"kbs:///default/big/1", codes.OutOfRange, "5242880 bytes"},
	} {
		_, err := client.GetResource(t.Context(), &api.GetResourceRequest{ResourcePath: tc.path})
		wantStatus(t, err, tc.code, tc.text)
	}
}

func TestPullImage(t *testing.T) {
	t.Parallel()
	client := api.NewImagePullServiceClient(dial(t, nil))
	resp, err := client.PullImage(t.Context(), &api.ImagePullRequest{ImageUrl: "r/i:t", BundlePath: "/b"})
	if err != nil || resp.GetManifestDigest() != manifest.String() {
		t.Errorf("got digest %q, error %v", resp.GetManifestDigest(), err)
	}
	_, err = client.PullImage(t.Context(), &api.ImagePullRequest{ImageUrl: "full", BundlePath: "/b"})
	wantStatus(t, err, codes.ResourceExhausted, "out of space in /b")
	_, err = client.PullImage(t.Context(), &api.ImagePullRequest{ImageUrl: "r/i:t"})
	wantStatus(t, err, codes.InvalidArgument, "bundle_path")
	_, err = client.PullImage(t.Context(), &api.ImagePullRequest{BundlePath: "/b"})
	wantStatus(t, err, codes.InvalidArgument, "image_url")
}

func TestNotOffered(t *testing.T) {
	t.Parallel()
	client := dial(t, nil)
	_, err := api.NewSealedSecretServiceClient(client).UnsealSecret(t.Context(), &api.UnsealSecretInput{})
	wantStatus(t, err, codes.Unimplemented, "sealed secrets")
	_, err = api.NewSecureMountServiceClient(client).SecureMount(t.Context(), &api.SecureMountRequest{VolumeType: "block"})
	wantStatus(t, err, codes.Unimplemented, "block")
}

// TestErrorsAreNative wants a Go client to get the class and the text once.
func TestErrorsAreNative(t *testing.T) {
	t.Parallel()
	client := dial(t, nil)
	_, err := keyProvider(t, client, service.KeyProvider, "UnWrapKey", keywrap.MarshalUnwrapRequest(packet(t, "kbs:///default/key/denied")))
	err = errgrpc.ToNative(err)
	if !errdefs.IsPermissionDenied(err) || strings.Count(err.Error(), "rule 1") != 1 {
		t.Errorf("got error %v", err)
	}
}

func TestRefusalIsLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	client := dial(t, slog.New(slog.NewTextHandler(&log, nil)))
	_, err := keyProvider(t, client, service.KeyProvider, "UnWrapKey", []byte("x"))
	wantStatus(t, err, codes.InvalidArgument, "")
	if !strings.Contains(log.String(), "method=UnWrapKey") {
		t.Errorf("the log does not name the method: %s", log.String())
	}
}

func wantStatus(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	s, _ := status.FromError(err)
	if s.Code() != code || !strings.Contains(s.Message(), text) {
		t.Errorf("got %v, want %v with %q", err, code, text)
	}
}
