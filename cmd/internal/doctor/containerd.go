// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
)

const (
	imagesPlugin   = "io.containerd.cri.v1.images"
	runtimePlugin  = "io.containerd.cri.v1.runtime"
	criPlugin17    = "io.containerd.grpc.v1.cri"
	transferPlugin = "io.containerd.transfer.v1.local"
	annotationsKey = "enable_remote_snapshot_annotations"
	restart        = "systemctl restart containerd"
	dropInPath     = "/etc/containerd/conf.d/coffer.toml"
	pullHandlerKey = "io.containerd.cri.runtime-handler"
)

// release is containerd's as MAJOR.MINOR, both 0 if it is not known.
func (d *daemon) release() (major, minor int) {
	a, rest, _ := strings.Cut(strings.TrimPrefix(d.version, "v"), ".")
	b, _, _ := strings.Cut(rest, ".")
	major, aerr := strconv.Atoi(a)
	minor, berr := strconv.Atoi(b)
	if aerr != nil || berr != nil {
		return 0, 0
	}
	return major, minor
}

func (d *daemon) is17() bool { major, _ := d.release(); return major == 1 }

// before tells whether it is older than release 2.minor.
func (d *daemon) before(minor int) bool {
	major, m := d.release()
	return major == 1 || major == 2 && m < minor
}

// known tells whether its merged configuration could be read.
func (d *daemon) known() bool { return d.err == nil && d.configErr == nil && d.config != nil }

// dropIn is the command that makes the drop-in.
func (n *node) dropIn() string {
	release := "2.4"
	if major, minor := n.containerd.release(); major > 0 {
		release = fmt.Sprintf("%d.%d", major, minor)
	}
	c := "coffer-snapshotter config containerd --containerd " + release + " > " + dropInPath
	if n.containerd.is17() {
		c += "\ncoffer-snapshotter config containerd --containerd 1.7 --main >> " + n.containerd.main()
	}
	return c
}

func (d *daemon) main() string {
	if d.mainFile == "" {
		return "/etc/containerd/config.toml"
	}
	return d.mainFile
}

// in names the file in which to change a key: the last that has it, or the
// drop-in.
func (n *node) in(keys ...string) string {
	if name := n.containerd.last(keys...); name != "" {
		return "in " + name + ":"
	}
	if name := n.containerd.last("proxy_plugins", n.snapshotter.Name); name != "" {
		return "in " + name + ":"
	}
	return "in " + dropInPath + ":"
}

func checkContainerd(_ context.Context, n *node) []Finding {
	d := &n.containerd
	if d.err != nil {
		return []Finding{{Level: Problem, Text: fmt.Sprintf("containerd does not answer on %s: %v", d.socket, d.err), Fix: "systemctl start containerd, or name its socket: containerd_address in " + n.snapshotterConfig()}}
	}
	found := []Finding{{Level: OK, Text: fmt.Sprintf("containerd %s answers on %s", d.version, d.socket)}}
	if major, minor := d.release(); major == 1 && minor < 7 {
		found = append(found, Finding{Level: Problem, Text: "containerd " + d.version + " is too old", Fix: "install containerd 1.7 or newer"})
	}
	if d.configErr != nil {
		found = append(found, Finding{Level: Warning, Text: fmt.Sprintf("containerd's configuration is not checked: %v", d.configErr), Fix: "run coffer doctor as root on the node itself"})
	}
	return found
}

func (n *node) plugin() *introspectionapi.Plugin {
	for _, p := range n.containerd.plugins {
		if p.GetType() == "io.containerd.snapshotter.v1" && p.GetID() == n.snapshotter.Name {
			return p
		}
	}
	return nil
}

// checkPlugin looks at what runs, which may not be what the files say.
func checkPlugin(_ context.Context, n *node) []Finding {
	d := &n.containerd
	if d.err != nil {
		return nil
	}
	name := n.snapshotter.Name
	p := n.plugin()
	if p == nil {
		return []Finding{n.missingPlugin()}
	}
	if e := p.GetInitErr(); e != nil {
		return []Finding{{Level: Problem, Text: fmt.Sprintf("containerd could not load the snapshotter %s: %s", name, e.GetMessage()), Fix: n.dropIn() + "\n" + restart}}
	}
	if d.known() {
		if at := d.config.str("proxy_plugins", name, "address"); at != "" && at != n.snapshotter.Address {
			return []Finding{{
				Level: Problem, Text: fmt.Sprintf("containerd asks %s, and coffer-snapshotter serves on %s", at, n.snapshotter.Address),
				Fix: lines(n.in("proxy_plugins", name), "[proxy_plugins."+name+"]", fmt.Sprintf("  address = %q", n.snapshotter.Address), restart),
			}}
		}
	}
	return []Finding{{Level: OK, Text: "containerd has the snapshotter " + name}}
}

func (n *node) missingPlugin() Finding {
	d, name := &n.containerd, n.snapshotter.Name
	f := Finding{Level: Problem, Text: "containerd has no snapshotter " + name}
	switch {
	case d.known() && d.config.get("proxy_plugins", name) != nil:
		f.Text += ", though its configuration has it: it was not restarted since"
		f.Fix = restart
	case slices.ContainsFunc(d.config.strings("imports"), func(i string) bool {
		ok, err := filepath.Match(i, dropInPath)
		return err == nil && ok
	}):
		f.Fix = n.dropIn() + "\n" + restart
	default:
		f.Fix = lines("in "+d.main()+", before the first table:", `imports = ["/etc/containerd/conf.d/*.toml"]`, "then", n.dropIn(), restart)
	}
	return f
}

func checkExports(_ context.Context, n *node) (found []Finding) {
	p := n.plugin()
	if p == nil || p.GetInitErr() != nil {
		return nil
	}
	name, exports := n.snapshotter.Name, p.GetExports()
	table := "[proxy_plugins." + name + ".exports]"
	if root := exports["root"]; filepath.Clean(root) != filepath.Clean(n.snapshotter.Root) {
		found = append(found, Finding{
			Level: Warning, Text: fmt.Sprintf("containerd accounts images in %q, and coffer-snapshotter keeps them in %s", root, n.snapshotter.Root),
			Fix: lines(n.in("proxy_plugins", name), table, fmt.Sprintf("  root = %q", n.snapshotter.Root), restart),
		})
	}
	d := &n.containerd
	local := n.images().is(false, "disable_snapshot_annotations")
	switch {
	case d.is17() || local || exports[annotationsKey] == "true":
	case d.known() && d.config.str("proxy_plugins", name, "exports", annotationsKey) == "true":
		found = append(found, Finding{Level: Warning, Text: "the export " + annotationsKey + " is configured, but containerd was not restarted since", Fix: restart})
	default:
		text := "pulls do not name the image, so that coffer searches containerd's content for it at each layer"
		if v := d.config.get("proxy_plugins", name, "exports", annotationsKey); v != nil {
			text = fmt.Sprintf("%s: the value %v is not the string \"true\"", text, v)
		}
		found = append(found, Finding{
			Level: Warning, Text: text,
			Fix: lines(n.in("proxy_plugins", name), table, "  "+annotationsKey+` = "true"`, restart),
		})
	}
	if slices.Contains(p.GetCapabilities(), "rebase") {
		found = append(found, Finding{
			Level: Problem, Text: "the proxy plugin has the capability rebase, which a snapshotter that answers AlreadyExists cannot have",
			Fix: lines(n.in("proxy_plugins", name), "[proxy_plugins."+name+"]", "  capabilities = []", restart),
		})
	}
	if len(found) == 0 {
		found = append(found, Finding{Level: OK, Text: "the exports of the proxy plugin are right"})
	}
	return found
}

func unpackEntry(snapshotter string) string {
	return lines("[[plugins.'"+transferPlugin+"'.unpack_config]]", `  platform = "linux/`+runtime.GOARCH+`"`, fmt.Sprintf("  snapshotter = %q", snapshotter))
}

// checkUnpack looks for what ctr, nerdctl and CRI need since they leave pulls to
// the transfer service.
func checkUnpack(_ context.Context, n *node) (found []Finding) {
	d := &n.containerd
	if !d.known() {
		return nil
	}
	var listed []string
	for _, e := range d.config.tables("plugins", transferPlugin, "unpack_config") {
		listed = append(listed, e.str("snapshotter"))
	}
	level, who := Problem, "pulls into %s fail with \"no unpack platforms defined\""
	if d.is17() {
		level, who = Warning, "ctr images pull --local=false into %s fails"
	}
	keys := []string{"plugins", transferPlugin, "unpack_config"}
	standard := n.images().str("snapshotter")
	if standard == "" {
		standard = "overlayfs"
	}
	if !slices.Contains(listed, n.snapshotter.Name) {
		fix := []string{n.in(keys...)}
		if len(listed) == 0 { // the default list goes with the first entry
			fix = append(fix, unpackEntry(standard))
		}
		found = append(found, Finding{
			Level: level, Text: "unpack_config does not list the snapshotter: " + fmt.Sprintf(who, n.snapshotter.Name),
			Fix: lines(append(fix, unpackEntry(n.snapshotter.Name), restart)...),
		})
	} else if !slices.Contains(listed, standard) {
		found = append(found, Finding{
			Level: level, Text: fmt.Sprintf("unpack_config does not list %s, the snapshotter of all other images: ", standard) + fmt.Sprintf(who, standard),
			Fix: lines(n.in(keys...), unpackEntry(standard), restart),
		})
	}
	if len(found) == 0 {
		found = append(found, Finding{Level: OK, Text: "unpack_config lists " + strings.Join(listed, ", ")})
	}
	return found
}
