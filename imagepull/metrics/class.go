// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
)

// classOf is the class of an error as the value of a label.
func classOf(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "canceled"
	case errdefs.IsUnauthorized(err):
		return "unauthenticated"
	case errdefs.IsPermissionDenied(err):
		return "permission_denied"
	case errdefs.IsDataLoss(err):
		return "data_loss"
	case errdefs.IsUnavailable(err):
		return "unavailable"
	case errdefs.IsNotFound(err):
		return "not_found"
	case errdefs.IsInvalidArgument(err):
		return "invalid_argument"
	case errdefs.IsNotImplemented(err):
		return "not_implemented"
	case errdefs.IsResourceExhausted(err):
		return "resource_exhausted"
	case errdefs.IsFailedPrecondition(err), errdefs.IsAlreadyExists(err):
		return "failed_precondition"
	default:
		return "internal"
	}
}
