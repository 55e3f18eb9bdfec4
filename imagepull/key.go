// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/cdh/keywrap"
	"github.com/coffer-cc/coffer/imagepull/layercrypt"
	"github.com/coffer-cc/coffer/imagepull/registry"
)

// A lock is what an encrypted layer says about its key, read before anything
// is fetched.
type lock struct {
	public  layercrypt.PublicOptions
	packets [][]byte
}

// lockOf reads the layer's annotations; nil for a layer that is not encrypted.
func lockOf(layer registry.Layer) (*lock, error) {
	if !layercrypt.IsEncrypted(layer.MediaType) {
		return nil, nil
	}
	public, err := layercrypt.PublicOptionsOf(layer.Annotations)
	if err != nil {
		return nil, err
	}
	all, err := layercrypt.KeyPackets(layer.Annotations)
	if err != nil {
		return nil, err
	}
	l := &lock{public: public}
	others := ""
	for _, p := range all {
		if p.Scheme == keywrap.Scheme {
			l.packets = append(l.packets, p.Data)
		} else {
			others = p.Scheme
		}
	}
	if len(l.packets) > 0 {
		return l, nil
	}
	what := "it has no wrapped key"
	if others != "" {
		what = fmt.Sprintf("its key is wrapped for %.40q, not for a key broker", others)
	}
	return nil, fmt.Errorf("%s: add a recipient with `coffer encrypt --to kbs:///…`: %w", what, errdefs.ErrInvalidArgument)
}

// unwrap asks for the layer key with each packet in turn, and returns the
// error that says most if none works. The caller clears the result.
func (l *lock) unwrap(ctx context.Context, keys KeyUnwrapper) (layercrypt.PrivateOptions, error) {
	if keys == nil {
		return layercrypt.PrivateOptions{}, fmt.Errorf("no key broker is configured: set [kbs] url: %w", errdefs.ErrFailedPrecondition)
	}
	var best error
	for _, packet := range l.packets {
		raw, err := keys.UnwrapKey(ctx, packet)
		if err == nil {
			var private layercrypt.PrivateOptions
			private, err = layercrypt.ParsePrivateOptions(raw)
			clear(raw)
			if err == nil {
				return private, nil
			}
		}
		if ctx.Err() != nil {
			return layercrypt.PrivateOptions{}, context.Cause(ctx)
		}
		if best == nil || rank(err) < rank(best) {
			best = err
		}
	}
	if n := len(l.packets); n > 1 {
		best = fmt.Errorf("none of %d wrapped keys can be had: %w", n, best)
	}
	return layercrypt.PrivateOptions{}, best
}

// rank orders errors by what they tell: lower is worth more.
func rank(err error) int {
	classes := []func(error) bool{
		errdefs.IsUnauthorized, errdefs.IsPermissionDenied, errdefs.IsUnavailable, errdefs.IsDataLoss, errdefs.IsNotFound,
	}
	for i, is := range classes {
		if is(err) {
			return i
		}
	}
	return len(classes)
}

// keyed is the outcome of an unwrap that runs beside the first connection.
type keyed struct {
	private layercrypt.PrivateOptions
	err     error
}

// beside runs unwrap while connect runs, and returns when both have ended. The
// first to fail ends the other; abort ends connect.
func beside(ctx context.Context, unwrap func(context.Context) (layercrypt.PrivateOptions, error), connect func() error, abort func()) (layercrypt.PrivateOptions, Stage, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	got := make(chan keyed, 1)
	go func() {
		private, err := unwrap(ctx)
		if err != nil {
			abort()
		}
		got <- keyed{private, err}
	}()
	err := connect()
	if err != nil {
		cancel()
	}
	key := <-got
	switch {
	case key.err != nil && (err == nil || errors.Is(err, context.Canceled)):
		return layercrypt.PrivateOptions{}, StageUnwrap, key.err
	case err != nil:
		key.private.Clear()
		return layercrypt.PrivateOptions{}, StageFetch, err
	}
	return key.private, StageUnwrap, nil
}
