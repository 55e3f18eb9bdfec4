// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/coffer-cc/coffer"

// contractLeaves are the formats that two sides of a wire share. Anybody may
// import them; they import nothing but the standard library.
func contractLeaves() []string {
	return []string{"attester/evidence", "kbs/rcar", "kbs/resource", "cdh/keywrap", "imagepull/layercrypt"}
}

// allowedMeetings are the only imports from one top-level package to another,
// leaves apart. Widening the table needs an ADR in docs/adr.
func allowedMeetings() map[string][]string {
	return map[string][]string{
		"plugin":      {"snapshotter"},
		"cmd":         {"plugin", "snapshotter", "imagepull", "cdh", "attester", "kbs"},
		"integration": {"plugin", "snapshotter", "imagepull", "cdh", "attester", "kbs", "cmd"},
	}
}

// testSupport are the packages that ship fakes and builders: tests of any
// package may use them, product code outside integration may not.
func testSupport() []string {
	return []string{"imagepull/imagetest", "kbs/kbstest", "attester/attestertest", "imagepull/policy/sigstore/sigstoretest"}
}

type listedPackage struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func TestPackagesMeetOnlyWhereTheDesignSays(t *testing.T) {
	t.Parallel()
	for _, p := range listPackages(t, "./...") {
		from, ours := strings.CutPrefix(p.ImportPath, module+"/")
		if !ours {
			t.Errorf("%s: no package may live at the module's root", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			if why := forbidden(from, imported, false); why != "" {
				t.Errorf("%s imports %s: %s", from, imported, why)
			}
		}
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			if why := forbidden(from, imported, true); why != "" {
				t.Errorf("the tests of %s import %s: %s", from, imported, why)
			}
		}
	}
}

// forbidden says why package from (relative to the module) must not import
// the given path, or "" if it may.
func forbidden(from, imported string, inTest bool) string {
	to, ours := strings.CutPrefix(imported, module+"/")
	leaf := slices.Contains(contractLeaves(), from)
	if !ours {
		external := strings.Contains(strings.Split(imported, "/")[0], ".")
		if leaf && external && !inTest {
			return "a contract leaf uses the standard library alone"
		}
		return ""
	}
	if from == to {
		return "" // an external test imports its package
	}
	support := slices.Contains(testSupport(), to)
	switch {
	case leaf && !inTest:
		return "a contract leaf imports nothing of ours"
	case support && inTest:
		return ""
	case support && top(from) != "integration" && !slices.Contains(testSupport(), from):
		return "test support is not for product code"
	case slices.Contains(contractLeaves(), to), top(from) == top(to):
		return ""
	case slices.Contains(allowedMeetings()[top(from)], top(to)):
		return ""
	}
	return "packages meet only in cmd and integration"
}

func top(path string) string { return strings.Split(path, "/")[0] }

func TestTheTopLevelIsFixed(t *testing.T) {
	t.Parallel()
	known := []string{"plugin", "snapshotter", "imagepull", "cdh", "attester", "kbs", "integration", "cmd"}
	for _, p := range listPackages(t, "./...") {
		if dir := top(strings.TrimPrefix(p.ImportPath, module+"/")); !slices.Contains(known, dir) {
			t.Errorf("%s: the top level is %s; see docs/architecture.md", p.ImportPath, strings.Join(known, " "))
		}
	}
}

// listPackages is go list -json of the patterns, run at the module's root.
func listPackages(t *testing.T, args ...string) []listedPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Imports,TestImports,XTestImports"}, args...)...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	var packages []listedPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
