// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package token_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/kbs/storage"
	"github.com/coffer-cc/coffer/kbs/storage/bolt"
	"github.com/coffer-cc/coffer/kbs/token"
)

func issuer(t testing.TB, curve elliptic.Curve, o token.Options) (*token.Issuer, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return token.NewIssuer(key, o)
}

func TestVerify(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	i, err := issuer(t, elliptic.P256(), token.Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	signed, id, err := i.Issue(map[string]any{"cpu0": map[string]any{"ear.status": "affirming"}})
	if err != nil {
		t.Fatal(err)
	}
	claims, err := i.Verify(signed)
	if err != nil || claims["jti"] != id || claims["iss"] != "coffer-kbs" || claims["ear.coffer.sample-allowed"] != nil {
		t.Errorf("%v %v", claims, err)
	}
	other, err := issuer(t, elliptic.P256(), token.Options{})
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(signed, ".")
	for name, bad := range map[string]string{
		"empty": "", "text": "x", "two parts": parts[0] + "." + parts[1],
		"no signature": parts[0] + "." + parts[1] + ".", "swapped": parts[1] + "." + parts[0] + "." + parts[2],
		"long": strings.Repeat("a", 1<<21),
	} {
		if _, err := i.Verify(bad); !errdefs.IsUnauthorized(err) || bad != "" && len(bad) < 1000 && strings.Contains(err.Error(), bad) && name != "text" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := i.Verify(strings.Repeat("a", 1<<21)); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("long: %v", err)
	}
	if _, err := other.Verify(signed); !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "another service") {
		t.Errorf("other key: %v", err)
	}
	now = now.Add(5 * time.Minute)
	if _, err := i.Verify(signed); !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "expired at 2027-") {
		t.Errorf("expired: %v", err)
	}
	if _, err := issuer(t, elliptic.P384(), token.Options{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("P-384: %v", err)
	}
}

func TestLoadKey(t *testing.T) {
	t.Parallel()
	store, err := bolt.Open(filepath.Join(t.TempDir(), "kbs.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	keys := make([]*ecdsa.PrivateKey, 4)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			key, err := token.LoadKey(t.Context(), store)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	wg.Wait()
	for _, k := range keys[1:] {
		if !k.Equal(keys[0]) {
			t.Error("two first starts made two keys")
		}
	}
	if err := store.Put(t.Context(), storage.Keys, "token-es256", []byte("damaged")); err != nil {
		t.Fatal(err)
	}
	if _, err := token.LoadKey(t.Context(), store); !errdefs.IsDataLoss(err) {
		t.Errorf("damaged: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	i, err := issuer(f, elliptic.P256(), token.Options{})
	if err != nil {
		f.Fatal(err)
	}
	signed, _, err := i.Issue(map[string]any{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed[:len(signed)-1])
	f.Add(strings.Repeat(".", 5))
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := i.Verify(s); err == nil && s != signed {
			t.Error("accepted")
		}
	})
}
