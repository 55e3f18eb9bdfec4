// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// encrypt does the publisher's part with the coffer command line.
func (d *demo) encrypt(ctx context.Context) error {
	token, err := d.tb.AdminToken(ctx)
	if err != nil {
		return err
	}
	d.key = "kbs:///default/key/demo-" + strings.ToLower(rand.Text()[:10])
	d.ref = d.tb.RegistryHost + "/demo:encrypted"
	err = d.coffer(ctx, "encrypt", "oci:"+d.source.layout+":demo", d.ref, "--to", d.key, "--kbs", d.tb.KBSURL, "--admin-token", token)
	if err != nil {
		return err
	}
	if d.layers, err = d.inspect(ctx); err != nil {
		return err
	}
	return d.coffer(ctx, "inspect", d.ref)
}

// coffer prints a coffer command line and runs it. On a terminal its progress
// bars are seen.
func (d *demo) coffer(ctx context.Context, args ...string) error {
	d.say("$ coffer %s", strings.Join(args, " "))
	start := time.Now()
	cmd := exec.CommandContext(ctx, filepath.Join(d.programs, "coffer"), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if d.terminal {
		cmd.Stderr = d.out
	}
	err := cmd.Run()
	d.show(stderr.String() + stdout.String())
	if err != nil {
		return fmt.Errorf("coffer %s: %w", args[0], err)
	}
	d.say("%.1f s", time.Since(start).Seconds())
	return nil
}

// layerBlob is a layer as the registry has it.
type layerBlob struct {
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	Encrypted bool   `json:"encrypted"`
}

// inspect lists the layers of the encrypted image.
func (d *demo) inspect(ctx context.Context) ([]layerBlob, error) {
	out, err := d.tb.Coffer(ctx, "inspect", "--json", d.ref)
	if err != nil {
		return nil, err
	}
	var report struct {
		Images []struct {
			Layers []layerBlob `json:"layers"`
		} `json:"images"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		return nil, fmt.Errorf("coffer inspect --json: %w", err)
	}
	if len(report.Images) != 1 {
		return nil, fmt.Errorf("coffer inspect --json: %d images, want 1", len(report.Images))
	}
	for _, l := range report.Images[0].Layers {
		if l.Encrypted {
			d.summary.EncryptedLayers++
		}
	}
	if n := d.summary.EncryptedLayers; n != d.summary.Layers {
		return nil, fmt.Errorf("%d of %d layers are encrypted", n, d.summary.Layers)
	}
	return report.Images[0].Layers, nil
}
