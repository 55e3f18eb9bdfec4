// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package attester

import (
	"context"
	"crypto/subtle"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/attester/initdata"
)

// InitDataHolder is an attester whose TEE has a field for the digest of
// init-data, that is set when the TEE is launched and cannot change later.
type InitDataHolder interface {
	Attester
	// InitDataField returns the field's name and all its bytes, as the TEE
	// itself says, without the host in between.
	InitDataField(ctx context.Context) (name string, value []byte, err error)
}

// CheckInitData compares the digest of an init-data with the TEE's field, as
// long as that is. nil says that the TEE was launched with this very init-data.
// The error is PermissionDenied where it was not, NotImplemented where the TEE
// has no such field or cannot be asked for it, and else that of the TEE.
func (a *Agent) CheckInitData(ctx context.Context, digest []byte) error {
	holder, ok := a.attester.(InitDataHolder)
	if !ok {
		return fmt.Errorf("TEE %s has no field for the digest of init-data: %w", a.TEE(), errdefs.ErrNotImplemented)
	}
	if len(digest) == 0 {
		return fmt.Errorf("the digest of init-data is empty: %w", errdefs.ErrInvalidArgument)
	}
	if err := a.lock(ctx); err != nil {
		return err
	}
	defer a.unlock()
	name, value, err := holder.InitDataField(ctx)
	if err != nil {
		return err
	}
	want := initdata.Fit(digest, len(value))
	switch {
	case len(value) == 0 || subtle.ConstantTimeCompare(value, make([]byte, len(value))) == 1:
		return fmt.Errorf("%s of this TEE is zero: it was launched without init-data: "+
			"launch it with %s = %x, or configure no init-data: %w", name, name, want, errdefs.ErrPermissionDenied)
	case subtle.ConstantTimeCompare(value, want) != 1:
		return fmt.Errorf("%s of this TEE is %x, the init-data's digest %x: it was launched with another one: "+
			"give it that one, or launch it with this digest: %w", name, value, want, errdefs.ErrPermissionDenied)
	}
	return nil
}
