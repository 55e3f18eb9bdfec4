// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// finding is what coffer doctor prints.
type finding struct{ Check, Level, Text, Fix string }

// doctor examines the machine from inside.
func (m *machine) doctor(t *testing.T, args ...string) []finding {
	t.Helper()
	args = append([]string{"doctor", "--json", "--snapshotter-config", m.SnapshotterConfig(), "--guest-config", m.GuestConfig()}, args...)
	out, err := m.Exec(t.Context(), filepath.Join(buildPrograms(t), "coffer"), args...)
	var found []finding
	if jerr := json.Unmarshal([]byte(out), &found); jerr != nil {
		t.Fatalf("coffer doctor: %v, %v in\n%s", err, jerr, out)
	}
	bad := false
	for _, f := range found {
		bad = bad || f.Level == "problem"
	}
	var failed *testbed.CommandError
	if errors.As(err, &failed) != bad {
		t.Errorf("coffer doctor ended with %v, with problems: %v", err, bad)
	}
	return found
}

// wantFinding wants a finding of the check with that level and texts in what it
// says and advises.
func wantFinding(t *testing.T, found []finding, check, level string, texts ...string) finding {
	t.Helper()
next:
	for _, f := range found {
		if f.Check != check || f.Level != level {
			continue
		}
		for _, text := range texts {
			if !strings.Contains(f.Text+"\n"+f.Fix, text) {
				continue next
			}
		}
		return f
	}
	t.Errorf("no %s of %s says %q in %+v", level, check, texts, found)
	return finding{}
}

// editDropIn changes containerd's drop-in and restarts it.
func (m *machine) editDropIn(t *testing.T, edit func(string) string) {
	t.Helper()
	b, err := os.ReadFile(m.DropIn())
	if err != nil {
		t.Fatal(err)
	}
	edited := edit(string(b))
	if edited == string(b) {
		t.Fatal("nothing was edited")
	}
	if err := os.WriteFile(m.DropIn(), []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Containerd.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestDoctor: a healthy node has no problem, and what is broken on it is found
// with the line or command that mends it.
func TestDoctor(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	for _, f := range m.doctor(t) {
		if f.Level == "ok" || f.Level == "warning" && (strings.Contains(f.Text, "without TLS") || f.Check == "disk") {
			continue
		}
		t.Errorf("on a healthy node: %+v", f)
	}
	good, err := os.ReadFile(m.DropIn())
	if err != nil {
		t.Fatal(err)
	}
	without := func(pattern string) func(string) string {
		return func(s string) string { return regexp.MustCompile(pattern).ReplaceAllString(s, "") }
	}
	for _, tc := range []struct {
		name, check, level string
		edit               func(string) string
		texts              []string
	}{
		{"S1 S10", "unpack", "problem", without(`(?s)\[\[plugins.*?\n\n`), []string{"no unpack platforms", m.DropIn(), "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]", `snapshotter = "coffer"`, `snapshotter = "overlayfs"`}},
		{"only coffer", "unpack", "problem", without(`(?s)\[\[[^\[]*?overlayfs"\n`), []string{"does not list overlayfs", m.DropIn(), `snapshotter = "overlayfs"`}},
		{"S3 S11", "exports", "warning", without(`enable_remote_snapshot_annotations.*`), []string{"[proxy_plugins.coffer.exports]", `enable_remote_snapshot_annotations = "true"`}},
		{"S7", "pull", "warning", func(s string) string {
			return s + "\n[plugins.'io.containerd.cri.v1.images']\n  disable_snapshot_annotations = false\n"
		}, []string{"disable_snapshot_annotations = true"}},
		{"discard", "pull", "warning", func(s string) string {
			return s + "\n[plugins.'io.containerd.cri.v1.images']\n  discard_unpacked_layers = true\n"
		}, []string{"content digest not found", "discard_unpacked_layers = false"}},
		{"no plugin", "plugin", "problem", func(s string) string {
			return without(`(?s)\[proxy_plugins.*?\n\n`)(without(`(?s)\[\[plugins.*?\n\n`)(s))
		}, []string{"no snapshotter coffer", "config containerd --containerd 2.4"}},
		{"other socket", "plugin", "problem", func(s string) string { return strings.Replace(s, "sn.sock", "no.sock", 1) }, []string{"no.sock", `address = "` + m.Dir + `/sn.sock"`}},
		{"other root", "exports", "warning", func(s string) string { return strings.Replace(s, "/sn\"", "/elsewhere\"", 1) }, []string{"elsewhere", `root = "` + m.Dir + `/sn"`}},
		{"no handler", "handlers", "problem", without(`(?s)\[plugins\.'io.containerd.cri.*`), []string{"no runtime handler", "config containerd"}},
		{"Kata", "handlers", "problem", func(s string) string {
			return strings.ReplaceAll(s, "io.containerd.runc.v2", "io.containerd.kata.v2")
		}, []string{"local route", `route = "guest"`}},
		{"rebase", "exports", "problem", func(s string) string {
			return strings.Replace(s, `  type = "snapshot"`, "  type = \"snapshot\"\n  capabilities = ['rebase']", 1)
		}, []string{"capabilities = []"}},
		{"two names", "shared root", "problem", func(s string) string {
			return s + "\n[proxy_plugins.second]\n  type = 'snapshot'\n  address = '" + m.Dir + "/sn.sock'\n"
		}, []string{"coffer, second"}},
	} {
		m.editDropIn(t, tc.edit)
		f := wantFinding(t, m.doctor(t), tc.check, tc.level, tc.texts...)
		t.Logf("%s: %s\n%s", tc.name, f.Text, f.Fix)
		if tc.name == "S1 S10" { // and the advice is followed
			err := m.CtrPull(t.Context(), "default", "coffer", m.PauseRef())
			if err == nil {
				t.Error("the pull works, that the doctor says does not")
			}
			m.editDropIn(t, func(s string) string {
				return s + f.Fix[strings.Index(f.Fix, "[["):strings.LastIndex(f.Fix, "\n")] + "\n"
			})
			wantFinding(t, m.doctor(t), tc.check, "ok", "overlayfs, coffer")
			if err := m.CtrPull(t.Context(), "default", "coffer", m.PauseRef()); err != nil {
				t.Error(err)
			}
		}
		m.editDropIn(t, func(string) string { return string(good) })
	}
	m.doctorOfServices(t)
}

// doctorOfServices stops one service after the other.
func (m *machine) doctorOfServices(t *testing.T) {
	t.Helper()
	m.editDropIn(t, func(s string) string { return s + "\n# not the same\n" })
	for _, tc := range []struct {
		c     *testbed.Component
		check string
		texts []string
	}{
		{m.Guest, "guest", []string{"coffer-guest", "systemctl enable --now coffer-guest"}},
		{m.KBS, "kbs", []string{m.KBSURL, "connection refused", "curl"}},
		{m.Snapshotter, "snapshotter", []string{"systemctl enable --now coffer-snapshotter"}},
		{m.Containerd, "containerd", []string{"does not answer", "containerd_address"}},
	} {
		if err := tc.c.Stop(); err != nil {
			t.Fatal(err)
		}
		wantFinding(t, m.doctor(t, "--timeout", "2s"), tc.check, "problem", tc.texts...)
		if err := tc.c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
