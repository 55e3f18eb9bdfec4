// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"os"
	"testing"

	"github.com/coffer-cc/coffer/integration/testbed"
)

const denyAll = `package policy
import rego.v1
default allow := false
reasons contains {"rule": "closed for tests", "expected": "an open day", "got": "today", "next": "come back tomorrow"}
`

const allowAffirming = `package policy
import rego.v1
default allow := false
allow if {
	count(input.submods) > 0
	every submod in input.submods { submod["ear.status"] == "affirming" }
}
`

// TestKBSRefuses: each way in which the key broker does not give the key.
func TestKBSRefuses(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	t.Run("no such key", func(t *testing.T) {
		p := m.publish(t, "nokey", testbed.ImageOptions{})
		m.setKey(t, p, nil)
		m.refuses(t, p, "code = FailedPrecondition", "not found", "kbs "+m.KBSURL, p.key.String())
		m.setKey(t, p, p.kek)
		m.runs(t, p)
	})
	t.Run("denies", func(t *testing.T) {
		p := m.publish(t, "denied", testbed.ImageOptions{})
		m.setPolicy(t, denyAll)
		m.refuses(t, p, "code = PermissionDenied", "kbs "+m.KBSURL,
			"closed for tests", "expected an open day", "got today", "next: come back tomorrow")
		m.setPolicy(t, allowAffirming)
		m.runs(t, p)
	})
	t.Run("away", func(t *testing.T) {
		p := m.publish(t, "away", testbed.ImageOptions{})
		if err := m.KBS.Stop(); err != nil {
			t.Fatal(err)
		}
		m.refuses(t, p, "code = Unavailable", "kbs "+m.KBSURL)
		if err := m.KBS.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.runs(t, p)
	})
	t.Run("refuses the evidence", func(t *testing.T) {
		p := m.publish(t, "evidence", testbed.ImageOptions{})
		m.switchSample(t, false)
		m.refuses(t, p, "code = Unauthenticated", "kbs "+m.KBSURL, "sample")
		m.switchSample(t, true)
		m.runs(t, p)
	})
}

func (m *machine) setPolicy(t *testing.T, rego string) {
	t.Helper()
	admin, err := m.Admin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close() //nolint:errcheck // idle connections only
	if err := admin.SetResourcePolicy(t.Context(), []byte(rego)); err != nil {
		t.Fatal(err)
	}
}

// switchSample lets coffer-kbs accept the sample TEE, or not, and starts the
// guest anew, so that it has to attest again.
func (m *machine) switchSample(t *testing.T, on bool) {
	t.Helper()
	from, to := []byte("sample = true"), []byte("sample = false")
	if on {
		from, to = to, from
	}
	config, err := os.ReadFile(m.KBSConfig())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(config, from) {
		t.Fatalf("%s has no %q", m.KBSConfig(), from)
	}
	if err := os.WriteFile(m.KBSConfig(), bytes.Replace(config, from, to, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*testbed.Component{m.KBS, m.Guest} {
		if err := c.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
