// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/registry"
)

// shelf is a registry of a few objects whose every answer a test can change.
type shelf struct {
	server *httptest.Server

	mu       sync.Mutex
	objects  map[string]object                                 // by path behind /v2/
	guard    func(w http.ResponseWriter, r *http.Request) bool // false: it has answered
	requests []*http.Request
}

type object struct {
	mediaType string
	body      []byte
	header    http.Header
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	s := unstarted()
	s.server.Start()
	t.Cleanup(s.server.Close)
	return s
}

func unstarted() *shelf {
	s := &shelf{objects: make(map[string]object)}
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	return s
}

func (s *shelf) host() string { return s.server.Listener.Addr().String() }

func (s *shelf) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Clone(r.Context()))
	guard := s.guard
	o, ok := s.objects[strings.TrimPrefix(r.URL.Path, "/v2/")]
	s.mu.Unlock()
	if guard != nil && !guard(w, r) {
		return
	}
	if !ok {
		http.Error(w, `{"errors":[{"code":"NAME_UNKNOWN","message":"no such thing"}]}`, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", o.mediaType)
	for k, v := range o.header {
		w.Header()[k] = v
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(o.body))
}

func (s *shelf) setGuard(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guard = f
}

// paths lists what was asked, in order, and forgets it.
func (s *shelf) paths() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, r := range s.requests {
		list = append(list, strings.TrimPrefix(r.URL.Path, "/v2/"))
	}
	s.requests = nil
	return list
}

func (s *shelf) put(path, mediaType string, body []byte, header http.Header) ocispec.Descriptor {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[path] = object{mediaType, body, header}
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
}

// drop takes everything with this in its path away.
func (s *shelf) drop(part string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path := range s.objects {
		if strings.Contains(path, part) {
			delete(s.objects, path)
		}
	}
}

// blob puts a blob.
func (s *shelf) blob(repository, mediaType string, body []byte) ocispec.Descriptor {
	return s.put(repository+"/blobs/"+digest.FromBytes(body).String(), mediaType, body, nil)
}

// manifest puts a document by digest and, unless tag is empty, by tag.
func (s *shelf) manifest(t *testing.T, repository, tag, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if tag != "" {
		s.put(repository+"/manifests/"+tag, mediaType, body, nil)
	}
	return s.put(repository+"/manifests/"+digest.FromBytes(body).String(), mediaType, body, nil)
}

// pushed is an image on a shelf.
type pushed struct {
	manifest, layer ocispec.Descriptor
	content         []byte
}

// image puts an image of one layer; name makes it differ from others.
func (s *shelf) image(t *testing.T, repository, tag, name string, platform ocispec.Platform) pushed {
	t.Helper()
	if platform.OS == "" {
		platform = ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	}
	content := bytes.Repeat([]byte(name+"\n"), 1000)
	layer := s.blob(repository, ocispec.MediaTypeImageLayer, content)
	config, err := json.Marshal(ocispec.Image{
		Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := s.manifest(t, repository, tag, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: s.blob(repository, ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{layer},
	})
	m.Platform = &platform
	return pushed{m, layer, content}
}

func (s *shelf) index(t *testing.T, repository, tag string, manifests ...ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	return s.manifest(t, repository, tag, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests,
	})
}

// client is one that speaks plain HTTP to all these.
func client(t *testing.T, opts registry.Options, shelves ...*shelf) *registry.Client {
	t.Helper()
	for _, s := range shelves {
		opts.Insecure = append(opts.Insecure, s.host())
	}
	c, err := registry.NewClient(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// pull resolves an image and reads its layer whole.
func pull(t *testing.T, c *registry.Client, ref string) (registry.Image, []byte, error) {
	t.Helper()
	image, err := c.Resolve(t.Context(), ref, "")
	if err != nil {
		return image, nil, err
	}
	b, err := fetch(t, c, image)
	return image, b, err
}

func fetch(t *testing.T, c *registry.Client, image registry.Image) ([]byte, error) {
	t.Helper()
	rc, err := c.Fetch(t.Context(), image.Reference, image.Layers[0].Descriptor, 0)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

// status makes a guard that answers everything with it.
func status(code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(code)
		fmt.Fprint(w, "{}")
		return false
	}
}
