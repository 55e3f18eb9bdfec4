// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package login

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

const (
	defaultLifetime = 10 * time.Minute
	// pauseBetween is how long a document stands at least: a registry that
	// refuses everything must not make its owner's door be knocked at for each
	// request.
	pauseBetween = 10 * time.Second
)

// Fetch reads a docker config.json from where it is kept: a file, or a resource
// of a key broker. The Loader clears what it returns.
type Fetch func(ctx context.Context) ([]byte, error)

// LoaderOptions of a Loader. The zero value is usable.
type LoaderOptions struct {
	// Lifetime is how long a document is used before it is fetched again, at
	// its next use; 0 means 10 minutes.
	Lifetime time.Duration
	// Config is for each document.
	Config Options
	// Logger tells of refreshes; nil discards.
	Logger *slog.Logger
}

// Loader is a Source whose document is fetched at its first use, again after
// its lifetime, and when a registry has refused what it said. The document is
// only ever in memory. Where it cannot be fetched again, the last one is used
// on: it is the registry that decides what it is worth.
type Loader struct {
	fetch Fetch
	opts  LoaderOptions
	now   func() time.Time

	turn  chan struct{} // holds a token while nobody fetches; the rest is guarded by it
	doc   *Config
	at    time.Time // of doc
	tried time.Time // of the last fetch
}

// NewLoader makes a Loader; it fetches nothing yet.
func NewLoader(fetch Fetch, opts LoaderOptions) *Loader {
	if opts.Lifetime <= 0 {
		opts.Lifetime = defaultLifetime
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Loader{fetch: fetch, opts: opts, now: time.Now, turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l
}

// Credential is Config.Credential of the present document. Errors of the fetch
// keep their class.
func (l *Loader) Credential(ctx context.Context, registry, repository string) (Credential, error) {
	doc, err := l.current(ctx)
	if err != nil {
		return Credential{}, err
	}
	return doc.Credential(ctx, registry, repository)
}

func (l *Loader) current(ctx context.Context) (*Config, error) {
	if err := l.take(ctx); err != nil {
		return nil, err
	}
	defer l.give()
	if l.doc != nil && (l.now().Sub(l.at) < l.opts.Lifetime || l.justTried()) {
		return l.doc, nil
	}
	if err := l.load(ctx); err != nil {
		if l.doc == nil {
			return nil, err
		}
		l.opts.Logger.WarnContext(ctx, "registry credentials are not renewed, the last ones are used", "err", err)
	}
	return l.doc, nil
}

// Refresh fetches the document again, unless that was done a moment ago.
func (l *Loader) Refresh(ctx context.Context) error {
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.give()
	if l.doc != nil && l.justTried() {
		return nil
	}
	return l.load(ctx)
}

func (l *Loader) justTried() bool { return l.now().Sub(l.tried) < pauseBetween }

// load replaces the document; the caller has the turn.
func (l *Loader) load(ctx context.Context) error {
	l.tried = l.now()
	b, err := l.fetch(ctx)
	if err != nil {
		return fmt.Errorf("registry credentials: %w", err)
	}
	defer clear(b)
	doc, err := Parse(b, l.opts.Config)
	if err != nil {
		return err
	}
	l.doc, l.at = doc, l.now()
	l.opts.Logger.DebugContext(ctx, "registry credentials are read")
	return nil
}

func (l *Loader) take(ctx context.Context) error {
	select {
	case <-l.turn:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *Loader) give() { l.turn <- struct{}{} }
