// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/policy"
)

// TestIdentity is the table of which signed names stand for which images.
func TestIdentity(t *testing.T) {
	t.Parallel()
	d := digest.FromString("the image")
	at := "@" + d.String()
	const (
		exact  = `"type":"matchExact"`
		repo   = `"type":"matchRepository"`
		either = `"type":"matchRepoDigestOrExact"`
		remap  = `"type":"remapIdentity","prefix":"mirror.example/vendor","signedPrefix":"vendor.example"`
		toHost = `"type":"remapIdentity","prefix":"mirror.example","signedPrefix":"docker.io/library"`
	)
	for _, c := range []struct {
		rule, image, signed string
		good                bool
	}{
		{exact, "a.b/c:1", "a.b/c:1", true},
		{exact, "a.b/c:1", "a.b/c:2", false},
		{exact, "a.b/c:1", "a.b/c", false},
		{exact, "a.b/c:1", "a.b/d:1", false},
		{exact, "a.b/c:1", "x.b/c:1", false},
		{exact, "a.b/c" + at, "a.b/c" + at, true},
		{exact, "a.b/c" + at, "a.b/c:1", false},
		{exact, "a.b/c:1" + at, "a.b/c:1" + at, true},
		{exact, "a.b/c:1" + at, "a.b/c:1", true}, // the digest is checked beside it
		{exact, "a.b/c:1" + at, "a.b/c" + at, false},
		{exact, "busybox", "docker.io/library/busybox:latest", true},
		{exact, "busybox", "busybox:latest", true},
		{exact, "a.b/c:1", "not a name", false},
		{exact, "a.b/c:1", "A.B/C:1", false},

		{either, "a.b/c:1", "a.b/c:1", true},
		{either, "a.b/c:1", "a.b/c:2", false},
		{either, "a.b/c:1", "a.b/c", false},
		{either, "a.b/c:1", "a.b/c" + at, false},
		{either, "a.b/c" + at, "a.b/c:7", true},
		{either, "a.b/c" + at, "a.b/c@" + digest.FromString("other").String(), true}, // its digest is not a name
		{either, "a.b/c" + at, "a.b/c", false},
		{either, "a.b/c" + at, "a.b/d:7", false},
		{either, "a.b/c:1" + at, "a.b/c:1", true},
		{either, "a.b/c:1" + at, "a.b/c:2", false},

		{repo, "a.b/c:1", "a.b/c", true},
		{repo, "a.b/c:1", "a.b/c:2", true},
		{repo, "a.b/c:1", "a.b/c/d", false},
		{repo, "a.b/c" + at, "a.b/c:2", true},

		{`"type":"exactReference","dockerReference":"x.y/z:1"`, "a.b/c:9", "x.y/z:1", true},
		{`"type":"exactReference","dockerReference":"x.y/z:1"`, "a.b/c:9", "x.y/z:2", false},
		{`"type":"exactReference","dockerReference":"x.y/z:1"`, "a.b/c:9", "a.b/c:9", false},
		{`"type":"exactReference","dockerReference":"z:1"`, "a.b/c:9", "docker.io/library/z:1", true},
		{`"type":"exactRepository","dockerRepository":"x.y/z"`, "a.b/c:9", "x.y/z:7", true},
		{`"type":"exactRepository","dockerRepository":"x.y/z"`, "a.b/c:9", "x.y/z", true},
		{`"type":"exactRepository","dockerRepository":"x.y/z"`, "a.b/c:9", "x.y/z/w:1", false},

		{remap, "mirror.example/vendor/app:1", "vendor.example/app:1", true},
		{remap, "mirror.example/vendor/app:1", "vendor.example/app:2", false},
		{remap, "mirror.example/vendor/app:1", "mirror.example/vendor/app:1", false},
		{remap, "mirror.example/vendor2/app:1", "mirror.example/vendor2/app:1", true}, // not remapped
		{remap, "mirror.example/vendor2/app:1", "vendor.example2/app:1", false},
		{remap, "mirror.example/vendor:1", "vendor.example:1", false},
		{remap, "mirror.example/vendor/app" + at, "vendor.example/app:5", true},
		{toHost, "mirror.example/busybox:1", "busybox:1", true},
		{toHost, "mirror.example:5000/busybox:1", "busybox:1", false},
	} {
		s := newScene(t)
		s.image = policy.Image{Name: c.image, Manifest: d}
		s.addTag(d, s.cosigned(s.key, cosignPayload(c.signed, d)))
		err := s.verify(s.byKey(`,"signedIdentity":{`+c.rule+`}`), policy.Options{})
		if good := err == nil; good != c.good {
			t.Errorf("%s: image %s, signed %s: %v", c.rule, c.image, c.signed, err)
		}
	}
}
