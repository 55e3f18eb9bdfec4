// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// closureFile lists every package outside the standard library that
// coffer-guest links: it is the trusted computing base, so its growth is a
// decision and shows in a diff. Rewrite it with
//
//	go test ./integration -run TestGuestClosure -update
const closureFile = "testdata/guest-closure.txt"

// outOfTheGuest must never be linked into the TEE, whatever the list says.
func outOfTheGuest() []string {
	return []string{
		"github.com/containerd/containerd/v2/core/",
		"github.com/containerd/containerd/v2/client",
		"github.com/containerd/containerd/api/",
		"github.com/containers/ocicrypt",
		"github.com/open-policy-agent/",
		"github.com/spf13/cobra",
		"github.com/prometheus/",
		"github.com/google/go-containerregistry",
		"go.opentelemetry.io/",
		module + "/imagepull/publish",
		module + "/cdh/keyprovider",
		module + "/kbs/server",
	}
}

// update is a flag of this test binary: rewrite the golden files.
var update = flag.Bool("update", false, "rewrite golden files") //nolint:gochecknoglobals // the flag package works this way

func TestGuestClosure(t *testing.T) {
	t.Parallel()
	var got []string
	for _, p := range listPackages(t, "-deps", "./cmd/coffer-guest") {
		path := p.ImportPath
		if !strings.Contains(strings.Split(path, "/")[0], ".") {
			continue // standard library
		}
		got = append(got, path)
		for _, prefix := range outOfTheGuest() {
			if strings.HasPrefix(path, prefix) {
				t.Errorf("coffer-guest links %s: %s is not allowed inside the TEE", path, prefix)
			}
		}
		if path == "google.golang.org/grpc" {
			t.Errorf("coffer-guest links gRPC itself: only its codes and status are allowed")
		}
	}
	slices.Sort(got)
	if *update {
		if err := os.WriteFile(closureFile, []byte(strings.Join(got, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pinned, err := os.ReadFile(closureFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Fields(string(pinned)), got); diff != "" {
		t.Errorf("coffer-guest's closure changed; if that is meant, rewrite %s with -update (- pinned, + now):\n%s", closureFile, diff)
	}
}
