// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// script is what runs in the container: it says which system this is and
// reads the secret.
const script = `/coffer-demo/busybox grep -h PRETTY_NAME /etc/os-release; /coffer-demo/busybox cat /coffer-demo/secret`

func command() []string { return []string{"/coffer-demo/busybox", "sh", "-c", script} }

// runWithCrictl pulls the image into a pod's runtime and runs the command.
func (d *demo) runWithCrictl(ctx context.Context) error {
	if err := d.pull(ctx); err != nil {
		return err
	}
	pod, err := d.tb.RunPod(ctx, "demo")
	if err != nil {
		return err
	}
	d.say("$ crictl runp …; crictl create …; crictl start …; crictl logs …")
	out, err := pod.Run(ctx, "demo", d.ref, command()...)
	if err != nil {
		return err
	}
	if err := d.check(out); err != nil {
		return err
	}
	return pod.Remove(ctx)
}

// pull pulls with crictl and notes how long it took.
func (d *demo) pull(ctx context.Context) error {
	d.say("$ crictl pull %s", d.ref)
	var total int64
	for _, l := range d.layers {
		total += l.Size
	}
	before := d.guestRead()
	start := time.Now()
	err := d.progress(ctx, "pull, decrypt and unpack in the TEE", total,
		func() int64 { return d.guestRead() - before },
		func(ctx context.Context) error { return d.tb.Pull(ctx, d.ref) })
	d.summary.PullSeconds = time.Since(start).Seconds()
	return err
}

// guestRead is how many bytes coffer-guest has read, nearly all of them from
// the registry.
func (d *demo) guestRead() int64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(d.tb.Guest.PID()) + "/io")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "rchar: "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// runWithCtr runs the image in another namespace of containerd, where it has
// to be pulled again; the layers are in the guest's store already.
func (d *demo) runWithCtr(ctx context.Context) error {
	d.say("$ ctr image pull --snapshotter coffer %s", d.ref)
	if err := d.tb.CtrPull(ctx, "default", "coffer", d.ref); err != nil {
		return err
	}
	d.say("$ ctr run --snapshotter coffer %s …", d.ref)
	out, err := d.tb.CtrRun(ctx, "default", "coffer", d.ref, "demo", command()...)
	if err != nil {
		return err
	}
	return d.check(out)
}

// check shows a container's output and wants the secret in it.
func (d *demo) check(out string) error {
	d.show(out)
	if !strings.Contains(out, d.source.secret) {
		return fmt.Errorf("the container did not print the image's secret, %q", d.source.secret)
	}
	return nil
}
