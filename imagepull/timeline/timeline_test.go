// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package timeline_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/timeline"
)

var update = flag.Bool("update", false, "write the golden files") //nolint:gochecknoglobals // a flag of the test

// script tells a recorder of a pull at set times.
type script struct {
	r    timeline.Recorder
	zero time.Time
}

const image = "registry.example.com/team/app:v1"

func newScript() *script { return &script{zero: time.Unix(1_700_000_000, 0)} }

func (s *script) at(ms int, e progress.Event) {
	e.Time = s.zero.Add(time.Duration(ms) * time.Millisecond)
	e.Image = image
	s.r.Record(e)
}

func (s *script) stage(stage progress.Stage, from, to int, err error) {
	s.at(from, progress.Event{Stage: stage, State: progress.Start})
	s.at(to, progress.Event{Stage: stage, State: progress.End, Err: err, Manifest: digest.FromString("manifest")})
}

func (s *script) layer(name string, size int64, stage progress.Stage, from, to int, err error, retries ...int) {
	e := progress.Event{Stage: stage, Layer: digest.FromString(name), Blob: digest.FromString("blob " + name), Total: size, State: progress.Start}
	s.at(from, e)
	for _, ms := range retries {
		e.State, e.Err = progress.Retry, errors.New("registry registry.example.com: no byte came for 1m0s")
		s.at(ms, e)
	}
	e.State, e.Err, e.Unpacked = progress.End, err, 3*size
	s.at(to, e)
}

// pulled is a pull of four layers, one of which is there already.
func pulled() *script {
	s := newScript()
	s.at(0, progress.Event{Stage: progress.Pull, State: progress.Start})
	s.stage(progress.Resolve, 2, 310, nil)
	s.stage(progress.Policy, 310, 420, nil)
	s.stage(timeline.Attest, 440, 1130, nil)
	s.stage(timeline.Evidence, 520, 790, nil)
	s.at(425, progress.Event{Stage: progress.Commit, State: progress.Start, Layer: digest.FromString("a"), Blob: digest.FromString("blob a"), Total: 3_400_000})
	s.at(426, progress.Event{Stage: progress.Commit, State: progress.End, Cached: true, Layer: digest.FromString("a"), Blob: digest.FromString("blob a"), Total: 3_400_000})
	for i, l := range []struct {
		name  string
		size  int64
		fetch int
	}{{"b", 81_000_000, 3300}, {"c", 12_345_678, 1900}, {"d", 512, 900}} {
		from := 430 + 10*i
		var retries []int
		if l.name == "b" {
			retries = []int{1800, 1900}
		}
		s.layer(l.name, l.size, progress.Fetch, from, l.fetch, nil, retries...)
		s.layer(l.name, l.size, progress.Unwrap, from+3, 1135+i, nil)
		s.layer(l.name, l.size, progress.Decompress, 1140, max(l.fetch+15, 1160), nil)
		s.layer(l.name, l.size, progress.Apply, 1140, max(l.fetch+20, 1165), nil)
		s.layer(l.name, l.size, progress.Decrypt, 1140, max(l.fetch+60, 1170), nil)
		s.layer(l.name, l.size, progress.Verify, max(l.fetch+20, 1165), max(l.fetch+60, 1170), nil)
		s.layer(l.name, l.size, progress.Commit, 3370+30*i, 3390+30*i, nil)
	}
	s.stage(progress.Measure, 3460, 3520, nil)
	s.at(3530, progress.Event{Stage: progress.Pull, State: progress.End})
	var order []digest.Digest
	for _, name := range []string{"a", "b", "c", "d"} {
		order = append(order, digest.FromString(name))
	}
	s.r.Arrange(order)
	return s
}

// cached is a pull of layers that are all there, which the end of the picture
// leaves no room to say.
func cached() *script {
	s := newScript()
	s.at(0, progress.Event{Stage: progress.Pull, State: progress.Start})
	s.stage(progress.Resolve, 0, 28, nil)
	for i, name := range []string{"a", "b"} {
		e := progress.Event{Stage: progress.Commit, State: progress.Start, Layer: digest.FromString(name), Blob: digest.FromString("blob " + name), Total: 3_400_000}
		s.at(28+i, e)
		e.State, e.Cached = progress.End, true
		s.at(29+i, e)
	}
	s.at(30, progress.Event{Stage: progress.Pull, State: progress.End})
	return s
}

// failed is a pull whose second layer is forged, with texts that would be
// markup if they were not escaped.
func failed() *script {
	s := newScript()
	s.at(0, progress.Event{Stage: progress.Pull, State: progress.Start})
	s.stage(progress.Resolve, 0, 8, nil)
	s.layer("b", 4<<30, progress.Fetch, 9, 60, progress.ErrAborted)
	forged := errors.New(`blob is <script>alert("1")</script> & more]]>` + "\x00\x1b[2J")
	s.layer("c", 700_000, progress.Fetch, 9, 50, nil)
	s.layer("c", 700_000, progress.Apply, 20, 55, nil)
	s.layer("c", 700_000, progress.Verify, 55, 58, forged)
	s.layer("d", 1, "<stage>", 10, 20, nil)
	s.at(61, progress.Event{Stage: progress.Pull, State: progress.End, Err: errors.New(`verify layer: ` + forged.Error() + strings.Repeat(" and more", 30))})
	return s
}

func TestSVG(t *testing.T) {
	t.Parallel()
	empty := &script{}
	for name, s := range map[string]*script{"pulled": pulled(), "failed": failed(), "cached": cached(), "empty": empty} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got bytes.Buffer
			if err := s.r.Timeline().WriteSVG(&got); err != nil {
				t.Fatal(err)
			}
			checkMarkup(t, got.Bytes())
			golden := filepath.Join("testdata", name+".svg")
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("run with -update if this is meant: %s", diff)
			}
		})
	}
}

// checkMarkup fails unless b is XML with only elements that draw.
func checkMarkup(t *testing.T, b []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		switch e.Name.Local {
		case "svg", "style", "g", "rect", "path", "text", "title":
		default:
			t.Errorf("element %s", e.Name.Local)
		}
		for _, a := range e.Attr {
			if strings.HasPrefix(a.Name.Local, "on") || strings.Contains(a.Name.Local, "href") {
				t.Errorf("attribute %s", a.Name.Local)
			}
		}
	}
}

func TestTimeline(t *testing.T) {
	t.Parallel()
	s := pulled()
	got := s.r.Timeline()
	if got.Image != image || got.Took != 3530*time.Millisecond || len(got.Stages) != 3 || len(got.Attestation) != 2 || len(got.Layers) != 4 {
		t.Fatalf("got %+v", got)
	}
	b := got.Layers[1]
	want := map[progress.Stage]time.Duration{
		progress.Fetch: 2870 * time.Millisecond, progress.Unwrap: 702 * time.Millisecond, progress.Decompress: 2175 * time.Millisecond,
		progress.Apply: 2180 * time.Millisecond, progress.Decrypt: 2220 * time.Millisecond, progress.Verify: 40 * time.Millisecond,
		progress.Commit: 20 * time.Millisecond,
	}
	if diff := cmp.Diff(want, timeline.Took(b.Spans)); diff != "" {
		t.Error(diff)
	}
	if !got.Layers[0].Cached || b.Cached || b.Unpacked != 3*b.Size || len(b.Spans[0].Retries) != 2 {
		t.Errorf("got %+v", got.Layers)
	}
}

func TestTookCountsNoTimeTwice(t *testing.T) {
	t.Parallel()
	spans := []timeline.Span{{Stage: "fetch", Start: 4, End: 6}, {Stage: "fetch", Start: 0, End: 2}, {Stage: "fetch", Start: 1, End: 3}, {Stage: "fetch", Start: 1, End: 2}}
	if got := timeline.Took(spans)["fetch"]; got != 5 {
		t.Errorf("got %d", got)
	}
}

// TestMissedStart is a recorder that watches from the middle on.
func TestMissedStart(t *testing.T) {
	t.Parallel()
	s := newScript()
	s.at(5, progress.Event{Stage: progress.Resolve, State: progress.End})
	s.at(6, progress.Event{Stage: progress.Fetch, State: progress.Start, Layer: "sha256:1", Blob: "sha256:2"})
	s.r.Record(progress.Event{})
	got := s.r.Timeline()
	if len(got.Stages) != 0 || len(got.Layers) != 1 || got.Layers[0].Spans[0].End != time.Millisecond && got.Took != time.Millisecond {
		t.Errorf("got %+v", got)
	}
}

func TestBegin(t *testing.T) {
	t.Parallel()
	var r timeline.Recorder
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			r.Begin(timeline.Attest, "kbs:///default/key/1")(errors.New("denied"))
			r.Timeline()
		})
	}
	wg.Wait()
	got := r.Timeline()
	if len(got.Attestation) != 4 || got.Attestation[0].Err != "denied" || got.Attestation[0].Detail != "kbs:///default/key/1" {
		t.Errorf("got %+v", got)
	}
}
