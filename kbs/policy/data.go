// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"errors"
	"strconv"

	"github.com/open-policy-agent/opa/v1/storage"
)

// requestStore is the base document `data` of an evaluation. It holds
// nothing itself: each evaluation brings its own data in its transaction, so
// that one prepared policy serves all requests at once.
type requestStore struct {
	storage.PolicyNotSupported
	storage.TriggersNotSupported
	storage.WritesNotSupported
}

// transaction carries the data of one evaluation.
type transaction struct{ data map[string]any }

// ID implements storage.Transaction.
func (transaction) ID() uint64 { return 1 }

func (requestStore) NewTransaction(context.Context, ...storage.TransactionParams) (storage.Transaction, error) {
	return transaction{}, nil
}

func (requestStore) Read(_ context.Context, txn storage.Transaction, path storage.Path) (any, error) {
	t, ok := txn.(transaction)
	if !ok {
		return nil, errors.New("policy: foreign transaction")
	}
	var at any = t.data
	for _, step := range path {
		var found bool
		switch v := at.(type) {
		case map[string]any:
			at, found = v[step]
		case []any:
			i, err := strconv.Atoi(step)
			if found = err == nil && i >= 0 && i < len(v); found {
				at = v[i]
			}
		}
		if !found {
			return nil, &storage.Error{Code: storage.NotFoundErr, Message: path.String()}
		}
	}
	return at, nil
}

func (requestStore) Commit(context.Context, storage.Transaction) error { return nil }

func (requestStore) Abort(context.Context, storage.Transaction) {}

func (requestStore) Truncate(context.Context, storage.Transaction, storage.TransactionParams, storage.Iterator) error {
	return errors.New("policy: data is read only")
}
