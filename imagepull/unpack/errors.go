// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// explain gives an error its class. The reader's own error and the context's go
// first, since everything that follows from them is no news.
func explain(ctx context.Context, src *source, err error) error {
	if src.err != nil {
		return fmt.Errorf("read layer: %w", src.err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("unpack layer: %w", context.Cause(ctx))
	}
	var errno unix.Errno
	switch {
	case errdefs.IsInvalidArgument(err), errdefs.IsFailedPrecondition(err):
		return fmt.Errorf("unpack layer: %w", err)
	case !errors.As(err, &errno):
		// No system call failed, so it is the tar that is wrong.
		return fmt.Errorf("unpack layer: %w: %w", err, errdefs.ErrInvalidArgument)
	case errno == unix.EFBIG:
		return fmt.Errorf("unpack layer: the file system of the image store has no files of that size: %w: %w", err, errdefs.ErrFailedPrecondition)
	case impossible(errno):
		return fmt.Errorf("unpack layer: %w: %w", err, errdefs.ErrInvalidArgument)
	default:
		return fmt.Errorf("unpack layer: %w", err)
	}
}

// headerError says where the tar stream is none.
func headerError(src *source, err error) error {
	switch {
	case errors.Is(err, tar.ErrFieldTooLong):
		return invalid("the extended header before byte %d of the tar stream has more than 1 MiB, the most that is read, so no option raises this limit", src.read)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("at byte %d of the tar stream: %w", src.read, err)
	default:
		return err
	}
}

// impossible reports whether a system call failed for what the layer asked for,
// rather than for the state of this machine.
func impossible(errno unix.Errno) bool {
	switch errno {
	case unix.EEXIST, unix.EINVAL, unix.EISDIR, unix.ELOOP, unix.EMLINK,
		unix.ENAMETOOLONG, unix.ENOENT, unix.ENOTDIR, unix.ERANGE, unix.E2BIG:
		return true
	default:
		return false
	}
}

// invalid is an error about what an entry asks for.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// unable is an error about what the file system or this machine does not do.
func unable(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrFailedPrecondition)
}

// failed names the system call of an error; nil stays nil.
func failed(call string, err error) error { return os.NewSyscallError(call, err) }

// short quotes a name for an error, without its end if that is long.
func short(name string) string {
	const enough = 256
	if len(name) > enough {
		return fmt.Sprintf("%q...", name[:enough])
	}
	return fmt.Sprintf("%q", name)
}
