// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// images is the section of CRI's images.
func (n *node) images() tree {
	if n.containerd.is17() {
		return n.containerd.config.table("plugins", criPlugin17, "containerd")
	}
	return n.containerd.config.table("plugins", imagesPlugin)
}

// runtimes are the runtime handlers, and the keys of the table that has them.
func (n *node) runtimes() (tree, []string) {
	keys := []string{"plugins", runtimePlugin, "containerd", "runtimes"}
	if n.containerd.is17() {
		keys[1] = criPlugin17
	}
	return n.containerd.config.table(keys...), keys
}

func quoted(keys ...string) string {
	parts := slices.Clone(keys)
	for i, k := range parts {
		if strings.ContainsAny(k, ".") {
			parts[i] = "'" + k + "'"
		}
	}
	return "[" + strings.Join(parts, ".") + "]"
}

// checkPull looks at how CRI pulls.
func checkPull(_ context.Context, n *node) (found []Finding) {
	d := &n.containerd
	if !d.known() || n.images() == nil {
		return nil
	}
	section := []string{"plugins", imagesPlugin}
	if d.is17() {
		section = []string{"plugins", criPlugin17, "containerd"}
	}
	line := func(key, value string) string {
		return lines(n.in(append(section, key)...), quoted(section...), "  "+key+" = "+value, restart)
	}
	if !d.before(1) && n.images().is(false, "disable_snapshot_annotations") {
		found = append(found, Finding{Level: Warning, Text: "CRI pulls by itself instead of by the transfer service; coffer does not need that", Fix: line("disable_snapshot_annotations", "true")})
	}
	if n.images().is(true, "discard_unpacked_layers") {
		found = append(found, Finding{
			Level: Warning, Text: "layers are discarded once unpacked: a plain image that was pulled into another snapshotter cannot be used with coffer without a new pull (\"content digest not found\")",
			Fix: line("discard_unpacked_layers", "false"),
		})
	}
	if len(found) == 0 {
		found = append(found, Finding{Level: OK, Text: "nothing in the way of CRI's pulls"})
	}
	return found
}

// checkHandlers wants a runtime handler for the snapshotter, and CRI's images to
// know of it.
func checkHandlers(_ context.Context, n *node) (found []Finding) {
	d := &n.containerd
	runtimes, keys := n.runtimes()
	if !d.known() || runtimes == nil {
		return nil
	}
	name := n.snapshotter.Name
	var ours []string
	for _, h := range slices.Sorted(maps.Keys(runtimes)) {
		table := runtimes.table(h)
		kata := strings.Contains(table.str("runtime_type"), "kata")
		if got := table.str("snapshotter"); got != name {
			if kata && n.snapshotter.guestRoute() {
				found = append(found, Finding{
					Level: Warning, Text: fmt.Sprintf("the handler %s keeps its images in %q", h, got),
					Fix: lines(n.in(append(keys, h, "snapshotter")...), quoted(append(keys, h)...), fmt.Sprintf("  snapshotter = %q", name), restart),
				})
			}
			continue
		}
		ours = append(ours, h)
		found = append(found, n.checkHandler(h, table, keys)...)
	}
	if len(ours) == 0 {
		text := "no runtime handler uses the snapshotter " + name
		fix := n.dropIn() + "\n" + restart
		if n.snapshotter.guestRoute() {
			fix = strings.ReplaceAll(fix, " > ", " --route guest --handler HANDLER > ")
		}
		if n.images().str("snapshotter") == name {
			return append(found, Finding{Level: OK, Text: "CRI keeps all images in " + name})
		}
		return append(found, Finding{Level: Problem, Text: text, Fix: fix})
	}
	return append(found, Finding{Level: OK, Text: fmt.Sprintf("pods of the handler %s use the snapshotter", strings.Join(ours, ", "))})
}

func (n *node) checkHandler(h string, table tree, keys []string) (found []Finding) {
	d, name := &n.containerd, n.snapshotter.Name
	kind := table.str("runtime_type")
	if kind == "" {
		found = append(found, Finding{
			Level: Problem, Text: fmt.Sprintf("the handler %s has no runtime_type: the file that defines it is not imported", h),
			Fix: lines(n.in(append(keys, h)...), quoted(append(keys, h)...), `  runtime_type = "…"`, restart),
		})
	}
	kata := strings.Contains(kind, "kata")
	if n.snapshotter.guestRoute() && kind != "" && !kata {
		found = append(found, Finding{
			Level: Problem, Text: fmt.Sprintf("the handler %s runs %s, which cannot pull in a guest: its containers would be empty", h, kind),
			Fix: lines(n.in(append(keys, h)...), quoted(append(keys, h)...), `  runtime_type = "io.containerd.kata.v2"`, restart),
		})
	}
	if !n.snapshotter.guestRoute() && kata {
		found = append(found, Finding{
			Level: Problem, Text: fmt.Sprintf("the handler %s runs %s, but coffer-snapshotter is in the local route", h, kind),
			Fix: lines("in "+n.snapshotterConfig()+", with another root and address for a second snapshotter:", `route = "guest"`, "systemctl restart coffer-snapshotter"),
		})
	}
	if d.is17() {
		return found
	}
	platform := []string{"plugins", imagesPlugin, "runtime_platforms", h}
	if got := d.config.str(append(platform, "snapshotter")...); got != name && d.before(4) {
		found = append(found, Finding{
			Level: Problem, Text: fmt.Sprintf("images of the handler %s are pulled into %q: containers would need a second unpack", h, got),
			Fix: lines(n.in(append(platform, "snapshotter")...), quoted(platform...), fmt.Sprintf("  snapshotter = %q", name), restart),
		})
	}
	return found
}

// checkPause looks for the image of pods' first containers.
func checkPause(ctx context.Context, n *node) []Finding {
	d := &n.containerd
	if !d.known() {
		return nil
	}
	ref := d.config.str("plugins", imagesPlugin, "pinned_images", "sandbox")
	if d.is17() {
		ref = d.config.str("plugins", criPlugin17, "sandbox_image")
	}
	if ref == "" {
		return nil
	}
	_, err := imagesapi.NewImagesClient(d.conn).Get(namespaces.WithNamespace(ctx, "k8s.io"), &imagesapi.GetImageRequest{Name: ref})
	switch err = errgrpc.ToNative(err); {
	case err == nil:
		return []Finding{{Level: OK, Text: "the pause image " + ref + " is there"}}
	case errdefs.IsNotFound(err):
		return []Finding{{Level: OK, Text: "the pause image " + ref + " will be pulled with the first pod"}}
	}
	return []Finding{{Level: Warning, Text: fmt.Sprintf("the pause image %s: %v", ref, err)}}
}
