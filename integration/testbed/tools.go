// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// FindTools finds the folder with the programs that Options.Tools asks for:
// $COFFER_TOOLS, or .tools/bin of the checkout that holds the working folder.
func FindTools() (string, error) {
	dir := os.Getenv("COFFER_TOOLS")
	if dir == "" {
		root, err := FindRoot()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(root, ".tools", "bin")
	}
	for _, tool := range []string{"containerd", "ctr", "containerd-shim-runc-v2", "runc", "crictl", "registry"} {
		if _, err := os.Stat(filepath.Join(dir, tool)); err != nil {
			return "", fmt.Errorf("%s is not in %s: install it with \"make tools\"", tool, dir)
		}
	}
	return dir, nil
}

// FindRoot finds the root of the checkout that holds the working folder.
func FindRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("the working folder is not in a checkout of coffer: no go.mod above it")
		}
		dir = up
	}
}

// ProcessesNaming lists the command lines, of the whole machine, that contain
// text, such as a testbed's folder.
func ProcessesNaming(text string) []string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var lines []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if line := commandLine(pid); strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines
}
