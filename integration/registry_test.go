// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// TestRegistryFails: each way in which the registry does not give a layer to
// the guest, after containerd got the manifest.
func TestRegistryFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault testbed.Fault
		texts []string
	}{
		"cut":          {testbed.Fault{CutAfter: 1000}, []string{"code = Unavailable", "check that the registry runs"}},
		"dropped":      {testbed.Fault{Drop: true}, []string{"code = Unavailable", "check that the registry runs"}},
		"unauthorized": {testbed.Fault{Status: http.StatusUnauthorized}, []string{"code = Unauthenticated", "set credentials for"}},
		"notfound":     {testbed.Fault{Status: http.StatusNotFound}, []string{"code = FailedPrecondition", "check the name", "not found"}},
		"toomany":      {testbed.Fault{Status: http.StatusTooManyRequests}, []string{"code = Unavailable", "too many requests", "try again later"}},
		"broken":       {testbed.Fault{Status: http.StatusInternalServerError}, []string{"code = Unavailable", "500", "try again later"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := boot(t, testbed.Options{}) // another's pull would have its own staging folder
			m.startPod()
			p := m.publish(t, name, testbed.ImageOptions{})
			m.Proxy.Set(p.top().Digest.String(), c.fault)
			m.refuses(t, p, append(c.texts, "registry "+m.RegistryHost, p.top().Digest.String())...)
			m.Proxy.Clear()
			m.runs(t, p)
		})
	}
}

// TestRegistryManifestFails: the guest does not get the manifest that
// containerd got a moment before.
func TestRegistryManifestFails(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	for name, c := range map[string]struct {
		fault testbed.Fault
		texts []string
	}{
		"unauthorized": {testbed.Fault{Status: http.StatusUnauthorized}, []string{"code = Unauthenticated", "set credentials for"}},
		"forbidden":    {testbed.Fault{Status: http.StatusForbidden}, []string{"code = PermissionDenied", "set credentials that may pull it"}},
		"notfound":     {testbed.Fault{Status: http.StatusNotFound}, []string{"code = FailedPrecondition", "check the name", "not found"}},
		"changed":      {testbed.Fault{Body: func(b []byte) []byte { return append(b, ' ') }}, []string{"code = DataLoss", "again"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := m.publish(t, name, testbed.ImageOptions{})
			c.fault.Skip = 1
			m.Proxy.Set("/manifests/"+digest.FromBytes(p.raw).String(), c.fault)
			m.refuses(t, p, append(c.texts, "registry "+m.RegistryHost)...)
			m.Proxy.Clear()
			m.runs(t, p)
		})
	}
}

// TestRegistryRecovers: faults that pass are not seen by the user.
func TestRegistryRecovers(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	for name, fault := range map[string]testbed.Fault{
		"cut":     {CutAfter: 100_000, Times: 1},
		"dropped": {Drop: true, Times: 1},
		"toomany": {Status: http.StatusTooManyRequests, Times: 1},
		"broken":  {Status: http.StatusInternalServerError, Times: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := m.publish(t, name, testbed.ImageOptions{LayerBytes: 300_000})
			m.Proxy.Set(p.top().Digest.String(), fault)
			m.runs(t, p)
		})
	}
}

// TestRegistryAway: nobody listens, before the pull and in its middle.
func TestRegistryAway(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	back := func(t *testing.T) {
		t.Helper()
		if err := m.Proxy.Back(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("before", func(t *testing.T) {
		p := m.publish(t, "before", testbed.ImageOptions{})
		if err := m.Proxy.Away(); err != nil {
			t.Fatal(err)
		}
		m.refuses(t, p, "connection refused", m.RegistryHost)
		back(t)
		m.runs(t, p)
	})
	t.Run("during", func(t *testing.T) {
		p := m.publish(t, "during", testbed.ImageOptions{})
		m.Proxy.Set(p.top().Digest.String(), testbed.Fault{Leave: true})
		m.refuses(t, p, "code = Unavailable", "registry "+m.RegistryHost, "connection refused")
		m.Proxy.Clear()
		back(t)
		m.runs(t, p)
	})
}
