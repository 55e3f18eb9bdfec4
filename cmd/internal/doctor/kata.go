// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"
)

const (
	mountOverlay   = "overlay"
	defaultKubelet = "/var/lib/kubelet/config.yaml"
	// pullTime is what a pull inside of CreateContainer may need: an image of some
	// GB over a slow link.
	pullTime = 10 * time.Minute
)

// checkHelper wants, in the guest route, what containerd runs to mount a
// container's root on the host.
func checkHelper(_ context.Context, n *node) (found []Finding) {
	if !n.snapshotter.guestRoute() || n.snapshotter.Guest.Mount == mountOverlay {
		return nil
	}
	for _, p := range []struct{ name, fix string }{
		{"mount.fuse", "apt-get install fuse3 (or the package that has mount.fuse)"},
		{n.snapshotter.Guest.Helper, "install " + n.snapshotter.Guest.Helper + " of coffer in a folder of containerd's PATH (/usr/local/bin), or name it with its path: helper, [guest], " + n.snapshotterConfig()},
	} {
		at, err := lookPath(p.name, n.containerd.path)
		if err != nil {
			found = append(found, Finding{Level: Problem, Text: fmt.Sprintf("containerd cannot find %s: CreateContainer fails on the mount of the root file system", p.name), Fix: p.fix})
			continue
		}
		found = append(found, Finding{Level: OK, Text: "containerd finds " + at})
	}
	return found
}

// lookPath finds a program as a process with that PATH does.
func lookPath(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	for dir := range strings.SplitSeq(path, ":") {
		if at := filepath.Join(dir, name); dir != "" && executable(at) == nil {
			return at, nil
		}
	}
	return "", fs.ErrNotExist
}

func executable(path string) error {
	st, err := os.Stat(path)
	if err == nil && (st.IsDir() || st.Mode()&0o111 == 0) {
		err = fs.ErrPermission
	}
	return err
}

// kataFiles are the configuration files of Kata's handlers.
func (n *node) kataFiles() (files []string) {
	if n.opts.Kata != "" {
		return []string{n.opts.Kata}
	}
	runtimes, _ := n.runtimes()
	for h := range runtimes {
		table := runtimes.table(h)
		if p := table.str("options", "ConfigPath"); p != "" && strings.Contains(table.str("runtime_type"), "kata") {
			files = append(files, p)
		}
	}
	if len(files) > 0 {
		slices.Sort(files)
		return slices.Compact(files)
	}
	for _, p := range []string{"/etc/kata-containers/configuration.toml", "/opt/kata/share/defaults/kata-containers/configuration.toml", "/usr/share/defaults/kata-containers/configuration.toml"} {
		if _, err := os.Stat(p); err == nil {
			return []string{p} // the first wins in Kata
		}
	}
	return nil
}

func checkKata(_ context.Context, n *node) (found []Finding) {
	if !n.snapshotter.guestRoute() {
		return nil
	}
	files := n.kataFiles()
	if len(files) == 0 {
		return []Finding{{Level: Warning, Text: "no configuration of Kata was found", Fix: "name it: coffer doctor --kata-config FILE"}}
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		var t tree
		if err == nil {
			err = toml.Unmarshal(b, &t)
		}
		if err != nil {
			found = append(found, Finding{Level: Problem, Text: fmt.Sprintf("configuration of Kata: %v", err), Fix: "mend or install " + name})
			continue
		}
		found = append(found, n.checkKataFile(name, t)...)
	}
	return found
}

func (n *node) checkKataFile(name string, t tree) (found []Finding) {
	// runtime-rs has its agent's table by name and this key there.
	timeout, table := seconds(t.get("agent", "kata", "create_container_timeout")), "[agent.kata]"
	if timeout == 0 {
		timeout, table = seconds(t.get("runtime", "create_container_timeout")), "[runtime]"
	}
	if timeout < pullTime {
		found = append(found, Finding{
			Level: Warning, Text: fmt.Sprintf("Kata gives up a container, and with it the pull in its guest, after %s (its default where the file does not say: 30 to 60 s)", timeout),
			Fix: lines("in "+name+":", table, fmt.Sprintf("  create_container_timeout = %d", 2*int(pullTime.Seconds()))),
		})
	}
	forced := t.is(true, "runtime", "experimental_force_guest_pull") || slices.Contains(t.strings("runtime", "experimental"), "force_guest_pull")
	if n.snapshotter.Guest.Mount == mountOverlay && !forced {
		found = append(found, Finding{
			Level: Problem, Text: `guest.mount is "overlay", and Kata is not told to pull in the guest: containers would be empty`,
			Fix: lines("in "+name+":", "[runtime]", "  experimental_force_guest_pull = true", `(runtime-rs: experimental = ["force_guest_pull"])`),
		})
	}
	for hypervisor := range t.table("hypervisor") {
		if shared := t.str("hypervisor", hypervisor, "shared_fs"); shared != "" && shared != "none" {
			found = append(found, Finding{
				Level: Warning, Text: fmt.Sprintf("Kata shares the host's files with the guest by %s; runtime-rs then does not pull in the guest", shared),
				Fix: lines("in "+name+":", "[hypervisor."+hypervisor+"]", `  shared_fs = "none"`),
			})
		}
	}
	if len(found) == 0 {
		found = append(found, Finding{Level: OK, Text: name + " is fit for pulls in the guest"})
	}
	return found
}

func seconds(v any) time.Duration {
	n, _ := v.(int64)
	return time.Duration(n) * time.Second
}

// checkKubelet looks at the timeout of CRI's calls and at whether pulls name the
// runtime handler.
func checkKubelet(_ context.Context, n *node) (found []Finding) {
	name := n.opts.Kubelet
	if name == "" {
		name = defaultKubelet
	}
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) && n.opts.Kubelet == "" {
		return []Finding{{Level: OK, Text: "there is no kubelet here"}}
	}
	var t map[string]any // not tree: its tables would be trees too
	if err == nil {
		err = yaml.Unmarshal(b, &t)
	}
	if err != nil {
		return []Finding{{Level: Problem, Text: fmt.Sprintf("configuration of kubelet: %v", err), Fix: "mend it, or name it with --kubelet-config"}}
	}
	config := tree(t)
	timeout, err := time.ParseDuration(config.str("runtimeRequestTimeout"))
	if err != nil || timeout == 0 {
		timeout = 2 * time.Minute // kubelet's default
	}
	if n.snapshotter.guestRoute() && timeout < pullTime {
		found = append(found, Finding{
			Level: Warning, Text: fmt.Sprintf("kubelet gives up CreateContainer after %s, and the pull in the guest is part of it", timeout),
			Fix: lines("in "+name+":", "runtimeRequestTimeout: 20m", "systemctl restart kubelet"),
		})
	}
	if !config.is(true, "featureGates", "RuntimeClassInImageCriApi") && n.images().str("snapshotter") != n.snapshotter.Name {
		found = append(found, Finding{
			Level: Warning, Text: "kubelet does not name the runtime handler when it pulls: images go to the default snapshotter first, where encrypted ones fail",
			Fix: lines("in "+name+":", "featureGates:", "  RuntimeClassInImageCriApi: true", "systemctl restart kubelet",
				"or give pods the annotation "+pullHandlerKey+": HANDLER"),
		})
	}
	if len(found) == 0 {
		found = append(found, Finding{Level: OK, Text: name + " is fit"})
	}
	return found
}
