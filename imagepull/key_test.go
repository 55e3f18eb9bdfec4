// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
	"github.com/coffer-cc/coffer/imagepull/registry"
)

// oneKey is a KeyUnwrapper that always gives the same private options.
type oneKey []byte

func (k oneKey) UnwrapKey(context.Context, []byte) ([]byte, error) { return bytes.Clone(k), nil }

func TestOpenerForgetsTheLayerKey(t *testing.T) {
	t.Parallel()
	private := `{"symkey":"` + strings.Repeat("A", 43) + `=","digest":"","cipheroptions":{"nonce":"` + strings.Repeat("A", 22) + `=="}}`
	p := &Puller{keys: oneKey(private), opts: Options{Logger: slog.New(slog.DiscardHandler)}}
	fetch := &fetchReader{open: func(int64) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("")), nil }, begin: func() {}}
	l := &lock{public: layercrypt.PublicOptions{Cipher: layercrypt.Cipher, HMAC: make([]byte, 32)}, packets: [][]byte{{}}}
	j := &job{p: p, pl: &pull{}, layer: registry.Layer{}, open: make(map[Stage]time.Time)}
	open, done, _, err := j.opener(t.Context(), fetch, l, func() {})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a spooled blob is opened twice
		if _, err := open(strings.NewReader("")); err != nil {
			t.Fatal(err)
		}
	}
	done()
	if _, err := open(strings.NewReader("")); !errors.Is(err, layercrypt.ErrMalformed) {
		t.Errorf("the key is still there: %v", err)
	}
}
