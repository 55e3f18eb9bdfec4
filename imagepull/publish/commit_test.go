// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/coffer-cc/coffer/imagepull/publish"
)

// TestLostAnswerToTheTag loses the answer to the last upload, in every state
// of the registry that may be behind it.
func TestLostAnswerToTheTag(t *testing.T) {
	t.Parallel()
	src := "oci:" + t.TempDir() + ":plain"
	source := target(t, src)
	tag(t, source, newImage(t, source, oneLayer("plain")), "plain")
	for name, c := range map[string]struct {
		stored bool // the registry has the tag
		away   bool // and does not answer any more
		cancel bool // because the caller gave up
		status int  // its answer; 0 cuts the connection
		want   func(error) bool
	}{
		"stored":                 {stored: true, want: func(err error) bool { return err == nil }},
		"stored, answer 502":     {stored: true, status: 502, want: func(err error) bool { return err == nil }},
		"stored, given up":       {stored: true, cancel: true, want: func(err error) bool { return err == nil }},
		"stored, away":           {stored: true, away: true, want: unknown},
		"not stored":             {want: unknown},
		"not stored, given up":   {cancel: true, want: unknown},
		"not stored, answer 502": {status: 502, want: func(err error) bool { return errdefs.IsUnavailable(err) && !unknown(err) }},
		"refused":                {status: 403, want: func(err error) bool { return errdefs.IsPermissionDenied(err) && !unknown(err) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var done atomic.Bool
			good := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, "/manifests/enc") {
					if done.Load() && c.away {
						panic(http.ErrAbortHandler) //nolint:forbidigo // how a handler cuts a connection
					}
					good.ServeHTTP(w, r)
					return
				}
				done.Store(true)
				if c.stored {
					good.ServeHTTP(httptest.NewRecorder(), r)
				}
				if c.status != 0 {
					w.WriteHeader(c.status)
					return
				}
				if c.cancel {
					cancel()
				}
				panic(http.ErrAbortHandler) //nolint:forbidigo // as above
			}))
			t.Cleanup(server.Close)
			_, err := encrypt(ctx, t, src, strings.TrimPrefix(server.URL, "http://")+"/app:enc", publish.Options{
				Recipients: []publish.Recipient{kbsRecipient(kid)}, Access: publish.Access{HTTP: &http.Client{}},
			})
			if !c.want(err) {
				t.Errorf("error %v", err)
			}
			if unknown(err) && !strings.Contains(err.Error(), "/app:enc whether the image is there") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func unknown(err error) bool { return errors.Is(err, publish.ErrOutcomeUnknown) }

// TestRemainsOfAKilledRun writes into a folder where a run was killed before
// it wrote the index.
func TestRemainsOfAKilledRun(t *testing.T) {
	t.Parallel()
	src, dir := "oci:"+t.TempDir()+":plain", t.TempDir()
	source := target(t, src)
	plain := oneLayer("plain")
	was := newImage(t, source, plain)
	tag(t, source, was, "plain")
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"oci-layout", ".coffer-123", "blobs/sha256/" + strings.Repeat("0", 64)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dst := "oci:" + dir + ":enc"
	result, err := encrypt(t.Context(), t, src, dst, publish.Options{Recipients: []publish.Recipient{kbsRecipient(kid)}})
	if err != nil {
		t.Fatal(err)
	}
	checkImage(t, plain, src, dst, was, result.Image)
}
