// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// demo is one run. Each step adds what later steps need.
type demo struct {
	config
	*screen

	tb      *testbed.Testbed
	source  source // the image before encryption
	ref     string // the encrypted image in the private registry
	key     string // kbs:/// URI of its key-encryption key
	layers  []layerBlob
	summary summary

	unclean error // why something may be left behind
}

// run does all steps and cleans up, whatever happens.
func (d *demo) run(ctx context.Context) (err error) {
	for _, old := range []string{"logs", "summary.json"} {
		if err := os.RemoveAll(filepath.Join(d.state, old)); err != nil {
			return err
		}
	}
	if d.tb, err = testbed.New(ctx, testbed.Options{Tools: d.tools, Programs: d.programs, Dir: d.tmp}); err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = d.saveLogs(err)
		}
		d.unclean = d.tb.Close()
		err = errors.Join(err, d.unclean)
	}()
	steps := []struct {
		title string
		do    func(ctx context.Context) error
	}{
		{"get a system image", d.getImage},
		{"start a whole machine: registry, coffer-kbs, coffer-guest, coffer-snapshotter, containerd", d.start},
		{"publisher: encrypt the image, push it, give its key to the key owner's KBS", d.encrypt},
		{"node: pull and run it with crictl", d.runWithCrictl},
		{"node: run it with ctr", d.runWithCtr},
		{"proof: what the host, the registry and the KBS saw", d.prove},
		{"the key owner now denies the key: a fresh guest must not get the image", d.runDenied},
		{"stop everything", d.stop},
	}
	for i, s := range steps {
		d.step(i+1, len(steps), s.title)
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, s.title, err)
		}
	}
	return d.summary.write(filepath.Join(d.state, "summary.json"))
}

func (d *demo) start(ctx context.Context) error {
	if err := d.tb.Start(ctx); err != nil {
		return err
	}
	d.say("private folder %s, registry %s, KBS %s", d.tb.Dir, d.tb.RegistryHost, d.tb.KBSURL)
	d.say("the TEE is the sample one: it proves nothing about hardware, and coffer-kbs accepts it here because its configuration says so")
	return nil
}

func (d *demo) stop(context.Context) error {
	if err := d.tb.Close(); err != nil {
		return err
	}
	if left := testbed.ProcessesNaming(d.tb.Dir); len(left) > 0 {
		return fmt.Errorf("still running: %q", left)
	}
	d.say("nothing runs, nothing is mounted, %s is gone", d.tb.Dir)
	return nil
}

// saveLogs copies the programs' logs out of the private folder.
func (d *demo) saveLogs(cause error) error {
	to := filepath.Join(d.state, "logs")
	if logs, err := os.ReadDir(d.tb.Logs); err != nil || len(logs) == 0 {
		return errors.Join(cause, err)
	}
	if err := os.MkdirAll(d.state, 0o755); err != nil {
		return errors.Join(cause, err)
	}
	if err := os.CopyFS(to, os.DirFS(d.tb.Logs)); err != nil {
		return errors.Join(cause, err)
	}
	return fmt.Errorf("%w\nthe logs are in %s", cause, to)
}
