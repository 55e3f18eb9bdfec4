// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// haveSkopeo says why the contender cannot run here, "" if it can.
func haveSkopeo() string {
	for _, program := range []string{"skopeo", "umoci"} {
		if _, err := exec.LookPath(program); err != nil {
			return program + " is not installed"
		}
	}
	return ""
}

// pullWithSkopeo decrypts an image into a layout and unpacks that.
func pullWithSkopeo(ctx context.Context, j job) (sample, error) {
	layout := filepath.Join(j.Dir, "layout") + ":image"
	var rss int64
	run := func(args ...string) error {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "TMPDIR="+j.Dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
		}
		if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			rss = max(rss, usage.Maxrss<<10)
		}
		return nil
	}
	s, err := measure(func() error {
		if err := run("skopeo", "--insecure-policy", "copy", "--src-tls-verify=false",
			"--decryption-key", filepath.Join(j.Cache, "key.pem"),
			"docker://"+reference(j.Registry, j.Images[0]), "oci:"+layout); err != nil {
			return err
		}
		return run("umoci", "unpack", "--image", layout, filepath.Join(j.Dir, "bundle"))
	})
	s.RSS = rss
	return s, err
}
