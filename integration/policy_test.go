// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/integration/testbed"
	"github.com/coffer-cc/coffer/kbs"
	"github.com/coffer-cc/coffer/kbs/resource"
)

// TestImagePolicy: the key owner pins an image in a policy that the guest gets
// from the key broker, whatever the registry has under its name.
func TestImagePolicy(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	id := resource.ID{Repository: "default", Type: "policy", Tag: "image"}
	pin := func(p *published, d digest.Digest) {
		t.Helper()
		m.put(t, id, fmt.Appendf(nil, `{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{%q:[{"type":"digests","digests":[%q]}]}}}`,
			strings.TrimSuffix(p.ref, ":1"), d))
	}
	m.configureGuest(t, "[policy]\nimage = \""+id.URI().String()+"\"\nrefresh = \"1ms\"\n")
	p := m.publish(t, "pinned", testbed.ImageOptions{})
	pin(p, digest.FromString("another image"))
	m.startPod()
	m.refuses(t, p, "code = PermissionDenied", "image policy", p.ref, "digests")
	pin(p, digest.FromBytes(p.raw))
	m.runs(t, p)

	// The registry's owner puts something else under the name.
	q := m.publish(t, "pinned", testbed.ImageOptions{})
	m.notPulled(t, q, "code = PermissionDenied", "image policy", "digests")
	if err := m.KBS.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := m.Guest.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.notPulled(t, q, "code = Unavailable", id.URI().String())
}

func (m *machine) put(t *testing.T, id resource.ID, b []byte) {
	t.Helper()
	admin, err := m.Admin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close() //nolint:errcheck // idle connections only
	if err := admin.PutResource(t.Context(), id, b, kbs.PutOptions{Overwrite: true}); err != nil {
		t.Fatal(err)
	}
}

// configureGuest adds to coffer-guest's configuration and starts it anew.
func (m *machine) configureGuest(t *testing.T, more string) {
	t.Helper()
	config, err := os.ReadFile(m.GuestConfig())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.GuestConfig(), append(config, "\n"+more...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Guest.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}
