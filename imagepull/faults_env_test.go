// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
	"github.com/coffer-cc/coffer/imagepull/store"
)

const (
	faultTries = 3
	// faultLimit ends a pull that hangs. None may come near it.
	faultLimit = 20 * time.Second
)

// faultSetup is what a puller is made for.
type faultSetup struct {
	login *imagetest.Login // that the registry asks for; nil for none
	// stalls makes it give up at once on a registry that stands still. Others
	// get the time that a busy machine may need.
	stalls bool
}

// newFaultEnv is a puller of a registry. It gives up after faultTries, without
// pauses to speak of.
func newFaultEnv(t *testing.T, r *imagetest.Registry, keys *keyring, setup faultSetup) *env {
	t.Helper()
	root, l := newTmpfs(t, "64m"), setup.login
	options := registry.Options{Insecure: []string{r.Host()}, CAs: r.CA(), StallTimeout: faultLimit}
	if setup.stalls {
		options.StallTimeout = 200 * time.Millisecond
	}
	if l != nil {
		r.RequireLogin(l)
		config := fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q}}}`, r.Host(), l.User, l.Password)
		credentials, err := login.Parse([]byte(config), login.Options{})
		if err != nil {
			t.Fatal(err)
		}
		options.Credentials = credentials
	}
	if r.CA() != nil {
		options.Insecure = nil
	}
	client, err := registry.NewClient(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	e := &env{t: t, registry: r, keys: keys, root: root}
	if e.store, err = store.Open(filepath.Join(root, "store"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	e.puller = imagepull.NewPuller(client, keys, e.store, imagepull.Options{Tries: faultTries, RetryDelay: time.Millisecond})
	t.Cleanup(func() {
		e.puller.Close()
		if err := e.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// bounded pulls all layers of p, by its tag where manifest is empty, and fails
// the test if that does not end by itself.
func (e *env) bounded(p imagetest.Pushed, manifest digest.Digest) error {
	e.t.Helper()
	ctx, cancel := context.WithTimeoutCause(e.t.Context(), faultLimit, errors.New("the pull hangs"))
	defer cancel()
	_, _, _, err := e.puller.PullLayer(ctx, p.Reference, manifest, p.Chain())
	if ctx.Err() != nil {
		e.t.Fatalf("the pull did not end by itself within %s: %v", faultLimit, err)
	}
	return err
}

// outcome is what is to come of a fault.
type outcome struct {
	// classes, one of which the error has; none for a pull that succeeds.
	classes []error
	// texts are in the error, beside the stage and what it is about.
	texts []string
	// stage, if it is not resolve for documents and fetch for layers.
	stage imagepull.Stage
	// about is what the error names, if that is not the target.
	about string
	// tries is how many requests of the target there are; 0 does not count. A
	// busy machine may need more where the registry stands still.
	tries int
}

// good is a pull that succeeds although something failed once.
func good(tries int) outcome { return outcome{tries: tries} }

// bad is a pull that fails with a class.
func bad(class error, tries int, texts ...string) outcome {
	return outcome{classes: []error{class}, tries: tries, texts: texts}
}

// away is a registry that does not work.
func away(texts ...string) outcome {
	return bad(errdefs.ErrUnavailable, faultTries, append(texts, "gave up after")...)
}

func (o outcome) at(stage imagepull.Stage) outcome { o.stage = stage; return o }

func (o outcome) naming(about string) outcome { o.about = about; return o }

func (o outcome) or(class error) outcome { o.classes = append(o.classes, class); return o }

// check compares an error with the outcome; about is what the error has to
// name, the digest of a blob or the tag.
func (o outcome) check(t *testing.T, err error, stage imagepull.Stage, about string) {
	t.Helper()
	if o.stage != "" {
		stage = o.stage
	}
	if len(o.classes) == 0 {
		if err != nil {
			t.Errorf("a passing fault ended the pull: %v", err)
		}
		return
	}
	if err == nil {
		t.Error("the pull succeeded")
		return
	}
	is := false
	for _, class := range o.classes {
		is = is || errors.Is(err, class)
	}
	if !is {
		t.Errorf("class is %v, want %v: %v", errdefs.Resolve(err), o.classes, err)
	}
	if got := stageOf(err); got != stage || !strings.HasPrefix(err.Error(), string(stage)+" ") {
		t.Errorf("stage is %q, want %q: %v", got, stage, err)
	}
	if !containsAll(err.Error(), append(o.texts, about)...) {
		t.Errorf("it does not say %q and %q: %v", about, o.texts, err)
	}
	if len(err.Error()) > 1000 {
		t.Errorf("its text has %d bytes", len(err.Error()))
	}
}
