// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/registry"
)

// question is what a policy is asked: may this image be used under this name?
type question struct {
	name            string
	manifest, index digest.Digest
}

// check accepts digests that can be asked about, of which one is that of the
// name if it has one.
func (q question) check(named digest.Digest) error {
	asked := []digest.Digest{q.manifest}
	if q.index != "" {
		asked = append(asked, q.index)
	}
	for _, d := range asked {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return fmt.Errorf("digest %.80q of its manifest or index is not sha256: %w", d, errdefs.ErrInvalidArgument)
		}
	}
	if named != "" && named != q.manifest && named != q.index {
		return fmt.Errorf("the image has the digest %s: name it by that: %w", q.manifest, errdefs.ErrPermissionDenied)
	}
	return nil
}

// maxVerdicts is how many are remembered: about a megabyte.
const maxVerdicts = 4096

// verdicts are the policy's consents, each with the revision of the policy that
// it is by. They live as long as the process: nothing of them is on a disk.
type verdicts struct {
	mu  sync.Mutex
	yes map[question]string // guarded by mu
}

func (v *verdicts) holds(q question, revision string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	by, found := v.yes[q]
	return found && by == revision
}

func (v *verdicts) remember(q question, revision string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.yes == nil || len(v.yes) >= maxVerdicts {
		v.yes = make(map[question]string) // rare, and costs a question for each image
	}
	v.yes[q] = revision
}

func (v *verdicts) forget(q question) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.yes, q)
}

// AdmitsAll reports whether AdmitImage has nothing to ask and nothing to
// record: neither a policy nor a measurement is configured. It never changes.
func (p *Puller) AdmitsAll() bool { return p.opts.Policy == nil && p.opts.Measure == nil }

// AdmitImage says whether an image may be used under a name although nothing is
// pulled for it: its layers are there, perhaps as those of another image. It asks
// Options.Policy and then records the image with Options.Measure, as PullLayer
// does, each name and manifest once in the life of this puller. nil means that
// the image may be used.
//
// The policy's consent counts for as long as its revision is the same, so that a
// container can be made again while no registry answers. A refusal is not
// remembered, and ends a consent.
//
// manifest is that of the platform, index the one it was chosen from, empty
// without one. That they belong together, and to the layers in question, the
// caller has checked: it is the caller, too, who keeps a refused image from being
// used. Errors have an errdefs class: PermissionDenied is the policy's no, or a
// name with another digest, Unavailable says that somebody could not be asked.
func (p *Puller) AdmitImage(ctx context.Context, image string, manifest, index digest.Digest) error {
	if p.AdmitsAll() {
		return nil
	}
	ref, err := registry.ParseReference(image)
	if err != nil {
		return classify(err)
	}
	q := question{name: ref.String(), manifest: manifest, index: index}
	if err := q.check(ref.Digest); err != nil {
		return failAt(StagePolicy, q.name, "", err)
	}
	if err := p.consent(ctx, q); err != nil {
		return failAt(StagePolicy, q.name, "", err)
	}
	return p.measureOnce(ctx, image, manifest)
}

// consent is nil where the policy allows the image, now or by a verdict that
// still holds.
func (p *Puller) consent(ctx context.Context, q question) error {
	if p.opts.Policy == nil {
		return nil
	}
	revision, err := p.opts.Policy.Revision(ctx, q.name)
	if err != nil {
		return err
	}
	if p.verdicts.holds(q, revision) {
		p.opts.Logger.DebugContext(ctx, "image policy has allowed the image", "image", q.name, "manifest", q.manifest, "stage", StagePolicy)
		return nil
	}
	_, err = p.ask(ctx, q.name, q)
	return err
}

// ask gets the policy's verdict, and remembers it if it is a yes. refused says
// that it is a no, and not only that somebody could not be asked. name is what
// events call the image.
func (p *Puller) ask(ctx context.Context, name string, q question) (refused bool, err error) {
	event := Event{Image: name, Manifest: q.manifest, Stage: StagePolicy}
	end := p.span(event)
	defer func() { end(err) }()
	revision, err := p.opts.Policy.Revision(ctx, q.name)
	if err == nil {
		err = p.verify(ctx, event, q)
	}
	log := p.opts.Logger.With("image", q.name, "manifest", q.manifest, "stage", StagePolicy)
	if err != nil {
		refused = ctx.Err() == nil && !temporary(err)
		if refused {
			p.verdicts.forget(q)
		}
		log.WarnContext(ctx, "image policy does not allow the image", "err", err)
		return refused, err
	}
	// Only where the policy was the same all the while is it known which one
	// has answered.
	if after, err := p.opts.Policy.Revision(ctx, q.name); err == nil && after == revision {
		p.verdicts.remember(q, revision)
	}
	log.InfoContext(ctx, "image policy allows the image")
	return false, nil
}

// verify asks the policy, again where a registry was away for a moment: whoever
// else the policy asks has been asked again already.
func (p *Puller) verify(ctx context.Context, event Event, q question) (verdict error) {
	err := p.retries(event).do(ctx, func() error {
		verdict = p.opts.Policy.Verify(ctx, q.name, q.manifest, q.index)
		var asked *registry.Error
		if errors.As(verdict, &asked) {
			return verdict
		}
		return nil
	})
	if err != nil {
		return err
	}
	return verdict
}
