// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package document_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull/document"
)

// kbs has resources, or an error.
type kbs struct {
	resources map[string]string
	err       error
	asked     atomic.Int64
	gate      chan struct{} // where not nil, answers wait for it
}

func (k *kbs) GetResource(_ context.Context, uri string) ([]byte, error) {
	k.asked.Add(1)
	if k.gate != nil {
		<-k.gate
	}
	if k.err != nil {
		return nil, k.err
	}
	text, ok := k.resources[uri]
	if !ok {
		return nil, fmt.Errorf("kbs: no such resource: %w", errdefs.ErrNotFound)
	}
	return []byte(text), nil
}

// parse counts.
func parse(parsed *int) func(b []byte) (*string, error) {
	return func(b []byte) (*string, error) {
		*parsed++
		if string(b) == "bad" {
			return nil, fmt.Errorf("word: bad: %w", errdefs.ErrInvalidArgument)
		}
		s := string(b)
		return &s, nil
	}
}

// A document lives through renewal, an absence, an end of patience, and a no.
func TestLoader(t *testing.T) {
	t.Parallel()
	const uri = "kbs:///default/word/1"
	now := time.Now()
	var parsed int
	k := &kbs{resources: map[string]string{uri: "one"}}
	l, err := document.NewLoader("word", uri, k, document.Refresh{Every: time.Minute, MaxStale: 10 * time.Minute, Now: func() time.Time { return now }}, parse(&parsed))
	if err != nil {
		t.Fatal(err)
	}
	want := func(word string) {
		t.Helper()
		if got, err := l.Load(t.Context()); err != nil || *got != word {
			t.Errorf("got %v, %v, want %q", got, err, word)
		}
	}
	fails := func(class error, text string) {
		t.Helper()
		if got, err := l.Load(t.Context()); got != nil || !errors.Is(err, class) || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, error %v, want %v with %q", got, err, class, text)
		}
	}
	want("one")
	want("one")
	now = now.Add(time.Minute)
	want("one")
	if n := k.asked.Load(); n != 2 || parsed != 1 {
		t.Errorf("asked %d times, parsed %d times", n, parsed)
	}
	k.resources[uri] = "two"
	want("one")
	now = now.Add(time.Minute)
	want("two")
	k.err = fmt.Errorf("kbs: away: %w", errdefs.ErrUnavailable)
	now = now.Add(11*time.Minute - time.Second)
	want("two")
	now = now.Add(time.Second)
	fails(errdefs.ErrUnavailable, "word: "+uri+": kbs: away")
	k.err, k.resources[uri] = nil, "bad"
	fails(errdefs.ErrInvalidArgument, uri+": word: bad")
	k.resources[uri] = "three"
	now = now.Add(time.Minute)
	want("three")
	delete(k.resources, uri)
	now = now.Add(time.Minute)
	fails(errdefs.ErrNotFound, "no such resource")
	k.err = fmt.Errorf("kbs: away: %w", errdefs.ErrUnavailable)
	fails(errdefs.ErrUnavailable, "away") // the last good one was withdrawn
	k.err, k.resources[uri] = nil, strings.Repeat("x", document.MaxSize+1)
	fails(errdefs.ErrInvalidArgument, "longer than")
}

// Who waits for a read does not wait for one more.
func TestAwayIsFoundOutOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := &kbs{gate: make(chan struct{}), err: errdefs.ErrUnavailable}
		r := document.NewReader(k, document.Refresh{})
		var done sync.WaitGroup
		for range 20 {
			done.Go(func() {
				if _, err := r.Get(t.Context(), "kbs:///a/b/c"); !errdefs.IsUnavailable(err) {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // one asks, the others wait
		close(k.gate)
		done.Wait()
		if n := k.asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		if _, err := r.Get(t.Context(), "kbs:///a/b/c"); !errdefs.IsUnavailable(err) || k.asked.Load() != 2 {
			t.Errorf("%v, asked %d times", err, k.asked.Load()) // who comes later asks again
		}
	})
}

func TestURIs(t *testing.T) {
	t.Parallel()
	for uri, good := range map[string]bool{
		"kbs:///default/policy/1": true, "kbs://kbs.example/a/b/c": true, "kbs+plugin://x": true,
		"file:///etc/policy.json": true, "/etc/policy.json": true, "initdata:///policy.json": true,
		"": false, "kbs:": false, "kbs+://x": false, "http://x": false, "etc/policy.json": false, "file://host/x": false,
		"/etc/../x": false, "file://": false, "initdata:///": false, "initdata://x/y": false, "initdata:x": false, "initdata+x:///y": false,
	} {
		err := document.CheckURI(uri)
		if (err == nil) != good {
			t.Errorf("%q: %v", uri, err)
		}
		if _, err := document.NewLoader("word", uri, nil, document.Refresh{}, parse(new(int))); (err == nil) != good || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", uri, err)
		}
	}
}

// Entries of the init-data are the getter's, files nobody's.
func TestSources(t *testing.T) {
	t.Parallel()
	k := &kbs{resources: map[string]string{"initdata:///word": "measured"}}
	file := filepath.Join(t.TempDir(), "word")
	if err := os.WriteFile(file, []byte("in a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := document.NewReader(k, document.Refresh{})
	for uri, want := range map[string]string{"initdata:///word": "measured", file: "in a file", "file://" + file: "in a file"} {
		if b, err := r.Get(t.Context(), uri); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", uri, b, err)
		}
	}
	if _, err := r.Get(t.Context(), file+".none"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no file: %v", err)
	}
	if _, err := document.NewReader(nil, document.Refresh{}).Get(t.Context(), "initdata:///word"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("nobody to ask: %v", err)
	}
}
