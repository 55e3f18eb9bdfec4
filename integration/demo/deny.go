// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// denyingPolicy gives keys to hardware TEEs only, which the sample one is not.
//
//go:embed hardware-only.rego
var denyingPolicy []byte

// kbs runs a coffer kbs command line, as the key owner does.
func (d *demo) kbs(ctx context.Context, args ...string) error {
	token, err := d.tb.AdminToken(ctx)
	if err != nil {
		return err
	}
	return d.coffer(ctx, append(append([]string{"kbs"}, args...), "--kbs", d.tb.KBSURL, "--admin-token", token)...)
}

// runDenied removes the images, boots the guest anew, lets the key owner
// deny, and wants the pull to be refused with an explanation.
func (d *demo) runDenied(ctx context.Context) error {
	if err := d.removeImages(ctx); err != nil {
		return err
	}
	if err := d.tb.Guest.Restart(ctx); err != nil {
		return err
	}
	d.say("images removed, a fresh guest has started")
	file := d.tb.Path("hardware-only.rego")
	if err := os.WriteFile(file, denyingPolicy, 0o600); err != nil {
		return err
	}
	if err := d.kbs(ctx, "resource-policy", "set", file); err != nil {
		return err
	}
	d.say("$ crictl pull %s", d.ref)
	err := d.tb.Pull(ctx, d.ref)
	var refused *testbed.CommandError
	if !errors.As(err, &refused) {
		return fmt.Errorf("the pull was not refused: %w", err)
	}
	said := lastLine(refused.Output) // crictl says it twice
	d.show(said)
	for _, part := range []string{"PermissionDenied", "rule", "expected", "got", "next"} {
		if !strings.Contains(said, part) {
			return fmt.Errorf("the refusal does not name its %s", part)
		}
	}
	d.summary.DeniedRun, d.summary.DeniedReason = true, said
	return d.proveNothingLeft(ctx)
}

func lastLine(text string) string {
	return text[strings.LastIndexByte(text, '\n')+1:]
}

func (d *demo) removeImages(ctx context.Context) error {
	if err := d.tb.RemoveImage(ctx, d.ref); err != nil {
		return err
	}
	_, err := d.tb.Ctr(ctx, "default", "image", "rm", "--sync", d.ref)
	return err
}

// proveNothingLeft: the refused pull left no layer of the image in the guest.
func (d *demo) proveNothingLeft(ctx context.Context) error {
	_, staging, err := d.tb.ListGuestStore(ctx)
	if err != nil {
		return err
	}
	if len(staging) > 0 {
		return fmt.Errorf("the refused pull left %q in the guest's staging folder", staging)
	}
	d.say("refused, and nothing of the image is left in the guest")
	return nil
}
