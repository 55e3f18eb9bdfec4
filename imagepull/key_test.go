// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
)

func TestReaderClearsTheLayerKey(t *testing.T) {
	t.Parallel()
	for _, cipher := range []string{layercrypt.Cipher, "unknown"} {
		key, nonce := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 16)
		private := layercrypt.PrivateOptions{SymKey: key, CipherOptions: map[string][]byte{"nonce": nonce}}
		l := &lock{public: layercrypt.PublicOptions{Cipher: cipher, HMAC: make([]byte, 32)}}
		_, err := l.reader(strings.NewReader(""), &private)
		if known := cipher == layercrypt.Cipher; known != (err == nil) || !known && !errors.Is(err, layercrypt.ErrUnsupported) {
			t.Errorf("cipher %s: %v", cipher, err)
		}
		if !bytes.Equal(key, make([]byte, 32)) || !bytes.Equal(nonce, make([]byte, 16)) {
			t.Errorf("cipher %s: the key is not cleared", cipher)
		}
	}
}
