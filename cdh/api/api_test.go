// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"testing"

	ocicrypt "github.com/containers/ocicrypt/utils/keyprovider"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-cc/coffer/cdh/api"
)

// TestBesideOcicrypt wants one program to be able to link these messages and
// ocicrypt's of almost the same name, which protobuf checks at start, and their
// wire forms to be the same.
func TestBesideOcicrypt(t *testing.T) {
	t.Parallel()
	b, err := proto.Marshal(&ocicrypt.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	var in api.KeyProviderKeyWrapProtocolInput
	if err := proto.Unmarshal(b, &in); err != nil || string(in.GetKeyProviderKeyWrapProtocolInput()) != "x" {
		t.Errorf("got %q, error %v", in.GetKeyProviderKeyWrapProtocolInput(), err)
	}
}
