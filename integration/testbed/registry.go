// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"
	"net/http"
	"os"
)

// registryConfig is the configuration of distribution 3. Deleting is on, so
// that tests may.
const registryConfig = `version: 0.1
log:
  level: info
  formatter: json
storage:
  filesystem:
    rootdirectory: %s
  delete:
    enabled: true
http:
  addr: %s
`

// prepareRegistry writes the registry's configuration and, if asked for, puts
// the fault proxy in front.
func (t *Testbed) prepareRegistry(ctx context.Context) error {
	addr, err := freePort(ctx)
	if err != nil {
		return err
	}
	t.RegistryHost = addr
	if t.opts.Faults {
		if t.Proxy, err = newFaultProxy(ctx, addr); err != nil {
			return err
		}
		t.RegistryHost = t.Proxy.Host()
	}
	file := t.path("registry.yml")
	config := fmt.Sprintf(registryConfig, t.path("registry"), addr)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	t.Registry = t.component("registry", t.opts.Tools, "serve", file)
	t.Registry.env = append(t.Registry.env, "OTEL_TRACES_EXPORTER=none")
	t.Registry.notify = ""
	t.Registry.probe = func(ctx context.Context) error { return answers(ctx, "http://"+addr+"/v2/") }
	return nil
}

// answers is nil if url answers with 200.
func answers(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}
