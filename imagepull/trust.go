// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/registry"
)

// ImagePolicy says which images may be used here.
type ImagePolicy interface {
	// Verify returns nil where the image may be used, else an error with an
	// errdefs class. name is the reference that the caller of the puller gave,
	// in its canonical spelling, never that of a mirror; manifest is the digest
	// of the platform's manifest and index that of the index it was chosen
	// from, empty without one. Both have been verified.
	Verify(ctx context.Context, name string, manifest, index digest.Digest) error
	// Revision names what Verify's answer for a name rests on: the policy and
	// the keys that it uses there. While the revision is the same, a signature
	// that was good once need not be read again. It asks nobody but the key
	// owner.
	Revision(ctx context.Context, name string) (string, error)
}

// Measurer extends the TEE's runtime measurement.
type Measurer interface {
	// Measure records an event, JSON in the canonical form of RFC 8785. It is
	// called once for each event and not tried again.
	Measure(ctx context.Context, event []byte) error
}

// pullEvent is what is measured of a pull, its members in canonical order.
type pullEvent struct {
	// Digest is that of the platform's manifest.
	Digest digest.Digest `json:"digest"`
	// Image is the name as the caller spelled it.
	Image string `json:"image"`
}

// canonical is the event in the form of RFC 8785. A reference and a digest have
// neither control characters nor letters beyond ASCII, so encoding/json without
// its HTML escapes writes just that.
func (e pullEvent) canonical() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// measure records the pull of an image under the name that the caller gave. To
// be called before anything of the image can be seen; where it fails, nothing
// may be.
func (p *Puller) measure(ctx context.Context, name string, image registry.Image) (err error) {
	if p.opts.Measure == nil {
		return nil
	}
	ref, err := registry.ParseReference(name)
	if err != nil {
		return classify(err)
	}
	canonicalName := ref.String()
	end := p.span(Event{Image: canonicalName, Manifest: image.Manifest, Stage: StageMeasure})
	defer func() { end(err) }()
	event, err := pullEvent{Digest: image.Manifest, Image: name}.canonical()
	if err == nil {
		err = p.opts.Measure.Measure(ctx, event)
	}
	if err != nil {
		return &LayerError{Stage: StageMeasure, Image: canonicalName, Err: classify(err)}
	}
	p.opts.Logger.InfoContext(ctx, "pull is measured", "image", canonicalName, "manifest", image.Manifest, "stage", StageMeasure)
	return nil
}

// measurement is the one measurement of an image whose layers are handed out;
// err is set before done is closed. It does not end with those who wait for it,
// but with the puller.
type measurement struct {
	done   chan struct{}
	err    error
	cancel context.CancelCauseFunc
}

// measureOnce is measure, once for each name and manifest in the life of this
// puller, however many ask. A failure is not remembered.
//
// What is remembered grows with the names that are asked for, as the measured
// log itself does.
func (p *Puller) measureOnce(ctx context.Context, name string, manifest digest.Digest) error {
	if p.opts.Measure == nil {
		return nil
	}
	key := pullEvent{Digest: manifest, Image: name}
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return errClosed
		}
		m, found := p.measured[key]
		if !found {
			m = p.startMeasurement(ctx, key)
		}
		p.mu.Unlock()
		select {
		case <-m.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if m.err == nil || !found {
			return m.err
		}
	}
}

// startMeasurement measures what key says. The caller holds mu.
func (p *Puller) startMeasurement(ctx context.Context, key pullEvent) *measurement {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	m := &measurement{done: make(chan struct{}), cancel: cancel}
	p.measured[key] = m
	go func() {
		defer cancel(nil)
		m.err = p.measure(ctx, key.Image, registry.Image{Manifest: key.Digest})
		if m.err != nil {
			p.mu.Lock()
			delete(p.measured, key)
			p.mu.Unlock()
		}
		close(m.done)
	}()
	return m
}

// maxAdmissions is how many verdicts are remembered.
const maxAdmissions = 128

// admission is a verdict that counts for a while: the image's manifest and the
// chain ids of its layers.
type admission struct {
	at       time.Time
	manifest digest.Digest
	layers   []digest.Digest
}

// askPolicy gets the policy's verdict over a resolved image.
func (p *Puller) askPolicy(ctx context.Context, pl *pull) error {
	if p.opts.Policy == nil {
		return nil
	}
	q := question{name: pl.image.Name, manifest: pl.image.Manifest, index: pl.image.Index}
	refused, err := p.ask(ctx, pl.key.name, q)
	if refused {
		p.forgetAdmission(pl.key)
	}
	return err
}

// rememberAdmission keeps the verdict for the calls of PullLayer that follow.
func (p *Puller) rememberAdmission(pl *pull) {
	if pl.key.manifest == "" || p.opts.Policy == nil && p.opts.Measure == nil {
		return
	}
	a := admission{at: time.Now(), manifest: pl.image.Manifest}
	for _, l := range pl.image.Layers {
		a.layers = append(a.layers, l.ChainID)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var oldest pullKey
	for key, other := range p.admitted {
		if oldest == (pullKey{}) || other.at.Before(p.admitted[oldest].at) {
			oldest = key
		}
	}
	if len(p.admitted) >= maxAdmissions {
		delete(p.admitted, oldest)
	}
	p.admitted[pl.key] = a
}

// forgetAdmission is for a refusal: a verdict of before counts no longer.
func (p *Puller) forgetAdmission(key pullKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.admitted, key)
}

// admission reports whether a layer that is in the store may be handed out
// without a new pull, and the manifest digest of its image, which is empty where
// nothing asks for it.
func (p *Puller) admission(key pullKey, chainID digest.Digest) (manifest digest.Digest, known bool) {
	if p.opts.Policy == nil && p.opts.Measure == nil {
		return "", true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a, found := p.admitted[key]
	if found && time.Since(a.at) >= p.opts.VerdictLifetime {
		delete(p.admitted, key)
		found = false
	}
	return a.manifest, found && slices.Contains(a.layers, chainID)
}

// errForeignLayer says that a chain id is not of an image.
func errForeignLayer(chainID digest.Digest, image string) error {
	return classify(fmt.Errorf("chain id %s is not of image %s: %w", chainID, image, errdefs.ErrInvalidArgument))
}
