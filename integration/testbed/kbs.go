// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/coffer-cc/coffer/kbs"
)

// prepareKBS has coffer-kbs write its own configuration.
func (t *Testbed) prepareKBS(ctx context.Context) error {
	addr, err := freePort(ctx)
	if err != nil {
		return err
	}
	t.KBSURL = "http://" + addr
	if _, err := Run(ctx, t.program("coffer-kbs"), "init", "--dir", t.path("kbs"), "--sample", "--listen", addr); err != nil {
		return err
	}
	t.KBS = t.component("coffer-kbs", t.opts.Programs, "serve", "-c", t.KBSConfig())
	t.KBS.ours = true
	return nil
}

// KBSConfig is the configuration file of coffer-kbs.
func (t *Testbed) KBSConfig() string { return t.path("kbs", "coffer-kbs.toml") }

// AdminToken makes a token for the admin API and returns the file that has it.
func (t *Testbed) AdminToken(ctx context.Context) (string, error) {
	_, err := Run(ctx, t.program("coffer-kbs"), "admin", "token", "--dir", t.path("kbs"))
	return t.path("kbs", "admin.token"), err
}

// Admin is a client of the admin API.
func (t *Testbed) Admin(ctx context.Context) (*kbs.Admin, error) {
	file, err := t.AdminToken(ctx)
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return kbs.NewAdmin(t.KBSURL, strings.TrimSpace(string(token)), kbs.AdminOptions{})
}

// Handshakes is how many attestations coffer-kbs has judged since it started,
// whatever their result.
func (t *Testbed) Handshakes(ctx context.Context) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.KBSURL+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s/metrics: %s", t.KBSURL, resp.Status)
	}
	var sum float64
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), "coffer_kbs_attestations_total")
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("metric %q: %w", lines.Text(), err)
		}
		sum += n
	}
	return int(sum), lines.Err()
}
