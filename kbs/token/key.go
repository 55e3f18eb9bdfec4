// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/kbs/storage"
)

// signingKey is the storage key of the signing key, in PKCS #8.
const signingKey = "token-es256"

// Storage keeps the signing key; see package storage for the contract.
type Storage interface {
	Get(ctx context.Context, namespace, key string) ([]byte, error)
	PutNew(ctx context.Context, namespace, key string, value []byte) error
}

// LoadKey returns the signing key of a store. The first call makes one; of
// several services that start at once on one store, all get the same.
func LoadKey(ctx context.Context, store Storage) (*ecdsa.PrivateKey, error) {
	der, err := store.Get(ctx, storage.Keys, signingKey)
	if errdefs.IsNotFound(err) {
		if err := createKey(ctx, store); err != nil && !errdefs.IsAlreadyExists(err) {
			return nil, fmt.Errorf("token: store signing key: %w", err)
		}
		der, err = store.Get(ctx, storage.Keys, signingKey)
	}
	if err != nil {
		return nil, fmt.Errorf("token: load signing key: %w", err)
	}
	defer clear(der)
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("token: the stored signing key is damaged: %w", errdefs.ErrDataLoss)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("token: the stored signing key is not an EC key on P-256: %w", errdefs.ErrDataLoss)
	}
	return key, nil
}

func createKey(ctx context.Context, store Storage) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	defer clear(der)
	return store.PutNew(ctx, storage.Keys, signingKey, der)
}
