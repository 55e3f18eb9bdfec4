// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
	"github.com/coffer-cc/coffer/imagepull/registry"
)

// LayerError says at which stage a pull ended and why. Err has an errdefs class.
type LayerError struct {
	Stage Stage
	// Image is the name that the caller gave.
	Image string
	// Digest is the blob's; empty at the stages that are about the image.
	Digest digest.Digest
	Err    error
}

func (e *LayerError) Error() string {
	switch {
	case e.Digest == "":
		return string(e.Stage) + " image " + e.Image + ": " + e.Err.Error()
	case e.Image == "":
		return string(e.Stage) + " layer " + e.Digest.String() + ": " + e.Err.Error()
	}
	return string(e.Stage) + " layer " + e.Digest.String() + " of " + e.Image + ": " + e.Err.Error()
}

func (e *LayerError) Unwrap() error { return e.Err }

// failAt makes a LayerError, unless err is one already: then it is the cause.
func failAt(stage Stage, image string, d digest.Digest, err error) error {
	if err == nil || layerError(err) != nil {
		return err
	}
	return &LayerError{Stage: stage, Image: image, Digest: d, Err: classify(err)}
}

// layerError finds the LayerError in err, nil if there is none.
func layerError(err error) *LayerError {
	var e *LayerError
	errors.As(err, &e)
	return e
}

// classified is an error with one class. On a wire it is its text and class;
// errors.Is and errors.As still see what is below.
type classified struct {
	err, class error
}

func (c *classified) Error() string        { return c.err.Error() }
func (c *classified) Unwrap() error        { return c.class }
func (c *classified) Is(target error) bool { return errors.Is(c.err, target) }
func (c *classified) As(target any) bool   { return errors.As(c.err, target) }

// classify finds the class of err, that of layercrypt's sentinels included.
func classify(err error) error {
	var class error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, layercrypt.ErrIntegrity):
		class = errdefs.ErrDataLoss
	case errors.Is(err, layercrypt.ErrUnsupported):
		class = errdefs.ErrNotImplemented
	case errors.Is(err, layercrypt.ErrMalformed):
		class = errdefs.ErrInvalidArgument
	default:
		class = errdefs.Resolve(err)
	}
	return &classified{err: err, class: class}
}

// temporary reports whether the same request may succeed a moment later.
func temporary(err error) bool {
	var e *registry.Error
	if errors.As(err, &e) {
		return e.Temporary
	}
	return errdefs.IsUnavailable(err) || errors.Is(err, io.ErrUnexpectedEOF)
}

// aboutContent reports whether an error says that the bytes are wrong, rather
// than that something here went wrong.
func aboutContent(err error) bool {
	return errdefs.IsInvalidArgument(err) || errdefs.IsDataLoss(err)
}

// errAbandoned ends a pull that no caller waits for any more.
var errAbandoned = fmt.Errorf("pull abandoned by its last caller: %w", context.Canceled)

// errClosed ends the pulls of a puller that is closed.
var errClosed = fmt.Errorf("the puller is closed: %w", errdefs.ErrUnavailable)
