// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package bolt keeps a Key Broker Service's records in one bbolt file: for a
// service on one machine. The file is created with mode 0600 and is held by
// one process at a time. Values are stored in the clear: whoever can read the
// file has the secrets, so it belongs on an encrypted or confidential disk.
package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	bbolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// lockWait is how long Open waits for another process to let the file go.
const lockWait = time.Second

// Store implements the contract of package storage on one file. It is safe
// for concurrent use.
type Store struct {
	db   *bbolt.DB
	path string
}

// Open opens the file at path and makes it, and its folder, where absent.
// The caller closes the Store.
func Open(path string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("storage: make folder of %s: %w", path, classify(err))
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("storage: %s is held by another process; stop it first: %w", path, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("storage: open %s: %w", path, classify(err))
	}
	return &Store{db: db, path: path}, nil
}

// Close waits for running calls and lets the file go. Later calls answer
// errdefs.ErrUnavailable.
func (s *Store) Close() error { return s.db.Close() }

// Get returns a copy of the value of key.
func (s *Store) Get(ctx context.Context, namespace, key string) ([]byte, error) {
	var value []byte
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(namespace))
		if b == nil {
			return errdefs.ErrNotFound
		}
		v := b.Get([]byte(key))
		if v == nil {
			return errdefs.ErrNotFound
		}
		value = bytes.Clone(v)
		return nil
	})
	if err != nil {
		return nil, s.explain("get", namespace, key, err)
	}
	return value, nil
}

// Put sets the value of key and replaces what was there.
func (s *Store) Put(ctx context.Context, namespace, key string, value []byte) error {
	return s.put(ctx, namespace, key, value, true)
}

// PutNew sets the value of key if the key is absent.
func (s *Store) PutNew(ctx context.Context, namespace, key string, value []byte) error {
	return s.put(ctx, namespace, key, value, false)
}

func (s *Store) put(ctx context.Context, namespace, key string, value []byte, replace bool) error {
	err := s.update(ctx, func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(namespace))
		if err != nil {
			return err
		}
		if !replace && b.Get([]byte(key)) != nil {
			return errdefs.ErrAlreadyExists
		}
		return b.Put([]byte(key), value)
	})
	if err != nil {
		return s.explain("put", namespace, key, err)
	}
	return nil
}

// Delete removes key.
func (s *Store) Delete(ctx context.Context, namespace, key string) error {
	err := s.update(ctx, func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(namespace))
		if b == nil || b.Get([]byte(key)) == nil {
			return errdefs.ErrNotFound
		}
		return b.Delete([]byte(key))
	})
	if err != nil {
		return s.explain("delete", namespace, key, err)
	}
	return nil
}

// List returns the keys of a namespace in ascending order.
func (s *Store) List(ctx context.Context, namespace string) ([]string, error) {
	keys := []string{}
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(namespace))
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, _ []byte) error {
			keys = append(keys, string(k))
			return nil
		})
	})
	if err != nil {
		return nil, s.explain("list", namespace, "", err)
	}
	return keys, nil
}

func (s *Store) view(ctx context.Context, f func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.db.View(f)
}

func (s *Store) update(ctx context.Context, f func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.db.Update(f)
}

func (s *Store) explain(verb, namespace, key string, err error) error {
	what := namespace
	if key != "" {
		what += " " + key
	}
	err = classify(err)
	if errdefs.IsResourceExhausted(err) {
		return fmt.Errorf("storage: %s %s: no space left for %s; enlarge its disk: %w", verb, what, s.path, err)
	}
	return fmt.Errorf("storage: %s %s: %w", verb, what, err)
}

func classify(err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", errdefs.ErrResourceExhausted, err)
	case errors.Is(err, bolterrors.ErrKeyRequired), errors.Is(err, bolterrors.ErrKeyTooLarge):
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	default:
		return err
	}
}
