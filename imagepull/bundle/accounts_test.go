// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/bundle"
)

// TestAccounts makes bundles of an image whose manifest tells hosts its users.
func TestAccounts(t *testing.T) { //nolint:tparallel // one folder for all
	t.Parallel()
	work := workDir(t)
	l := layer(t, filepath.Join(work, "l"), map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:7:8:App:/home:/bin/sh\n",
		"etc/group":  "root:x:0:\nstaff:x:50:app,other\napp:x:8\n",
	})
	empty := layer(t, filepath.Join(work, "empty"), map[string]string{"a": ""})
	for name, tc := range map[string]struct {
		layer string
		told  bundle.Accounts
		wrong string
	}{
		"nothing":         {l, bundle.Accounts{}, ""},
		"all":             {l, bundle.Accounts{Passwd: "root:x:0:0::/:\napp:x:7:8::/:\n", Group: "root:x:0:\nstaff:x:50:app,other\napp:x:8:\n"}, ""},
		"some":            {l, bundle.Accounts{Passwd: "\n  app:x:7:8\n", Group: "staff:x:50:app\n"}, ""},
		"another user id": {l, bundle.Accounts{Passwd: "app:x:0:8::/:\n"}, "app:x:0:8"},
		"another group":   {l, bundle.Accounts{Passwd: "app:x:7:0::/:\n"}, "app:x:7:0"},
		"another name":    {l, bundle.Accounts{Passwd: "root:x:0:0::/:\nnew:x:7:8::/:\n"}, "new:x:7:8"},
		"too short":       {l, bundle.Accounts{Passwd: "app:x\n"}, "app:x"},
		"no number":       {l, bundle.Accounts{Passwd: "app:x::8::/:\n"}, "app:x::8"},
		"a member more":   {l, bundle.Accounts{Group: "root:x:0:app\n"}, "root:x:0:app"},
		"a group's id":    {l, bundle.Accounts{Group: "staff:x:0:app\n"}, "staff:x:0:app"},
		"no files":        {empty, bundle.Accounts{Group: "root:x:0:\n"}, "root:x:0:"},
	} {
		t.Run(name, func(t *testing.T) {
			b, dir := bundle.New(filepath.Join(work, "scratch")), filepath.Join(work, "bundle")
			err := b.Create(dir, manifest, []string{tc.layer}, ocispec.Image{}, tc.told)
			if tc.wrong == "" {
				if err != nil {
					t.Fatal(err)
				}
				if err := b.Remove(dir); err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tc.wrong) {
				t.Errorf("got %v, want %q", err, tc.wrong)
			}
			checkGone(t, work, dir)
		})
	}
}
