// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package keywrap_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/cdh/keywrap"
)

func TestParseUnwrapRequest(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, request, want string
	}{
		{"ocicrypt", `{"op":"keyunwrap","keywrapparams":{"ec":null,"optsdata":null},"keyunwrapparams":{"dc":{"Parameters":{"x":["eQ=="]}},"annotation":"e30="}}`, "{}"},
		{"integers", `{"op":"keyunwrap","keyunwrapparams":{"annotation":[123,125]}}`, "{}"},
		{"odd operation and params", `{"op":"x","keywrapparams":{"ec":7},"keyunwrapparams":{"dc":[],"annotation":"e30="}}`, "{}"},
		{"own", string(keywrap.MarshalUnwrapRequest([]byte("{}"))), "{}"},
		{"no annotation", `{"keyunwrapparams":{"dc":null}}`, ""},
		{"null annotation", `{"keyunwrapparams":{"annotation":null}}`, ""},
		{"number out of range", `{"keyunwrapparams":{"annotation":[256]}}`, ""},
		{"not base64", `{"keyunwrapparams":{"annotation":"*"}}`, ""},
		{"annotation an object", `{"keyunwrapparams":{"annotation":{}}}`, ""},
		{"no params", `{"op":"keyunwrap"}`, ""},
		{"not JSON", `keyunwrap`, ""},
		{"empty", ``, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := keywrap.ParseUnwrapRequest([]byte(tc.request))
			if string(got) != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("got %q, error %v; want %q", got, err, tc.want)
			}
			if err != nil && !errors.Is(err, keywrap.ErrMalformed) {
				t.Errorf("error %v is not malformed", err)
			}
		})
	}
}

func TestParseWrapRequest(t *testing.T) {
	t.Parallel()
	named := []string{"keyid=kbs:///a/b/c"}
	for _, tc := range []struct {
		name, request, options string
		parameters             []string
	}{
		{
			"ocicrypt",
			`{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"attestation-agent":["a2V5aWQ9a2JzOi8vL2EvYi9j"],"pubkeys":["eQ=="]},"DecryptConfig":{"Parameters":null}},"optsdata":"e30="},"keyunwrapparams":{"dc":null,"annotation":null}}`,
			"{}", named,
		},
		{"ocicrypt-rs", `{"keywrapparams":{"ec":null,"optsdata":"{\"symkey\":\"x\"}"}}`, `{"symkey":"x"}`, nil},
		{"object", `{"keywrapparams":{"optsdata":{"symkey":"x"}}}`, `{"symkey":"x"}`, nil},
		{"integers", `{"keywrapparams":{"optsdata":[123,125]}}`, "{}", nil},
		{"no optsdata", `{"keywrapparams":{"ec":null}}`, "", nil},
		{"null optsdata", `{"keywrapparams":{"optsdata":null}}`, "", nil},
		{"optsdata not base64", `{"keywrapparams":{"optsdata":"*"}}`, "", nil},
		{"no params", `{}`, "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := keywrap.ParseWrapRequest([]byte(tc.request))
			if string(got.PrivateOptions) != tc.options || (err == nil) != (tc.options != "") {
				t.Errorf("got %q, error %v; want %q", got.PrivateOptions, err, tc.options)
			}
			if diff := cmp.Diff(tc.parameters, got.Parameters); diff != "" {
				t.Errorf("parameters (-want +got):\n%s", diff)
			}
		})
	}
}

func TestResponses(t *testing.T) {
	t.Parallel()
	got := keywrap.MarshalUnwrapResponse([]byte{0, 7, 255})
	if diff := cmp.Diff(`{"keyunwrapresults":{"optsdata":[0,7,255]}}`, string(got)); diff != "" {
		t.Error(diff)
	}
	if b, err := keywrap.ParseUnwrapResponse(got); err != nil || !bytes.Equal(b, []byte{0, 7, 255}) {
		t.Errorf("got %v, error %v", b, err)
	}
	if b, err := keywrap.ParseUnwrapResponse([]byte(`{"keyunwrapresults":{"optsdata":"AAf/"}}`)); err != nil || len(b) != 3 {
		t.Errorf("got %v, error %v", b, err)
	}
	if _, err := keywrap.ParseUnwrapResponse([]byte(`{"keywrapresults":null}`)); !errors.Is(err, keywrap.ErrMalformed) {
		t.Errorf("got error %v, want malformed", err)
	}
	wrapped := keywrap.MarshalWrapResponse([]byte("{}"))
	if diff := cmp.Diff(`{"keywrapresults":{"annotation":[123,125]}}`, string(wrapped)); diff != "" {
		t.Error(diff)
	}
	if b := keywrap.MarshalUnwrapResponse(nil); !json.Valid(b) {
		t.Errorf("not JSON: %s", b)
	}
}

func FuzzParseUnwrapRequest(f *testing.F) {
	f.Add(keywrap.MarshalUnwrapRequest([]byte(`{"kid":"k"}`)))
	f.Add([]byte(`{"keyunwrapparams":{"annotation":[1,2]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		packet, err := keywrap.ParseUnwrapRequest(b)
		if err != nil {
			return
		}
		again, err := keywrap.ParseUnwrapRequest(keywrap.MarshalUnwrapRequest(packet))
		if err != nil || !bytes.Equal(packet, again) {
			t.Errorf("got %q again as %q, error %v", packet, again, err)
		}
	})
}

func FuzzParseWrapRequest(f *testing.F) {
	f.Add([]byte(`{"keywrapparams":{"ec":{"Parameters":{"attestation-agent":["eA=="]}},"optsdata":"e30="}}`))
	f.Add([]byte(`{"keywrapparams":{"optsdata":{"symkey":"x"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := keywrap.ParseWrapRequest(b)
		if err == nil && len(req.PrivateOptions) == 0 {
			t.Error("a request without private options was let through")
		}
	})
}
