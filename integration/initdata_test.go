// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/integration/testbed"
)

const allowRole = `package policy
import rego.v1
default allow := false
allow if {
	every submod in input.submods {
		submod["ear.status"] == "affirming"
		submod["ear.veraison.annotated-evidence"].init_data_claims.role == "production"
	}
}
`

// TestInitData: a guest is launched with an init-data that has its image policy,
// and the key broker gives keys to guests with the right one alone.
func TestInitData(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.setPolicy(t, allowRole)
	pinned, other := m.publish(t, "pinned", testbed.ImageOptions{}), m.publish(t, "other", testbed.ImageOptions{})
	file := filepath.Join(t.TempDir(), "initdata")
	launch := func(role string) {
		t.Helper()
		if err := os.WriteFile(file, device(t, fmt.Sprintf(`algorithm = "sha384"
version = "0.1.0"

[data]
"role" = %q
"guest.toml" = '''
[policy]
image = "initdata:///policy.json"
'''
"policy.json" = '''
{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{
  %q:[{"type":"digests","digests":[%q]}],
  %q:[{"type":"reject"}]}}}
'''
`, role, strings.TrimSuffix(pinned.ref, ":1"), digest.FromBytes(pinned.raw), strings.TrimSuffix(other.ref, ":1"))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := os.ReadFile(m.GuestConfig())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.GuestConfig(), fmt.Appendf(nil, "initdata = %q\n%s", file, config), 0o600); err != nil {
		t.Fatal(err)
	}
	launch("staging")
	if err := m.Guest.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.startPod()
	m.refuses(t, pinned, "code = PermissionDenied", "kbs "+m.KBSURL)
	launch("production")
	if err := m.Guest.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.runs(t, pinned)
	m.refuses(t, other, "code = PermissionDenied", "image policy", other.ref)
}

// device is an init-data in the form of block devices.
func device(t *testing.T, text string) []byte {
	t.Helper()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b := binary.LittleEndian.AppendUint64([]byte("initdata"), uint64(z.Len()))
	return append(append(b, z.Bytes()...), make([]byte, 1024)...)
}
