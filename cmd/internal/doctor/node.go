// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

// node is what several checks need, found out once.
type node struct {
	opts Options

	snapshotter     snapshotterSettings
	snapshotterFile string
	snapshotterErr  error
	guest           guestSettings
	guestFile       string
	guestErr        error

	containerd daemon
	// others are further containerds of the machine.
	others []daemon
}

// daemon is one containerd.
type daemon struct {
	socket  string
	conn    *grpc.ClientConn
	err     error // of the first call
	version string
	pid     int
	plugins []*introspectionapi.Plugin

	mainFile  string
	config    tree // what containerd makes of its files; nil if unknown
	configErr error
	files     []file // main file and what it imports, in order
	path      string // where it looks for programs
}

// file is one of containerd's configuration files.
type file struct {
	name    string
	content tree
}

func newNode(o Options) *node {
	n := &node{opts: o, snapshotter: defaultSnapshotterSettings(), guest: defaultGuestSettings()}
	n.snapshotterFile, n.snapshotterErr = read(o.SnapshotterConfig, defaultSnapshotterConfig, &n.snapshotter)
	n.guestFile, n.guestErr = read(o.GuestConfig, defaultGuestConfig, &n.guest)
	n.containerd.socket = cmp.Or(o.Containerd, n.snapshotter.ContainerdAddress)
	return n
}

func (n *node) close() {
	if n.containerd.conn != nil {
		_ = n.containerd.conn.Close() // nothing depends on it
	}
}

// look asks containerd, and reads how its process was started.
func (n *node) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*n.opts.Timeout)
	defer cancel()
	d := &n.containerd
	if d.conn, d.err = grpc.NewClient("unix://"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials())); d.err != nil {
		return
	}
	resp, err := versionapi.NewVersionClient(d.conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		d.err = errgrpc.ToNative(err)
		return
	}
	d.version = resp.GetVersion()
	client := introspectionapi.NewIntrospectionClient(d.conn)
	plugins, err := client.Plugins(ctx, &introspectionapi.PluginsRequest{})
	if err != nil {
		d.err = errgrpc.ToNative(err)
		return
	}
	d.plugins = plugins.GetPlugins()
	if server, err := client.Server(ctx, &emptypb.Empty{}); err == nil {
		d.pid = int(server.GetPid())
	}
	d.readProcess(ctx, n.opts.Proc)
	for _, pid := range containerds(n.opts.Proc, d.pid) {
		other := daemon{pid: pid}
		other.readProcess(ctx, n.opts.Proc)
		n.others = append(n.others, other)
	}
}

// containerds lists the processes of that name, but one.
func containerds(proc string, but int) (pids []int) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == but {
			continue
		}
		if comm, err := os.ReadFile(filepath.Join(proc, e.Name(), "comm")); err == nil && strings.TrimSpace(string(comm)) == "containerd" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// readProcess has the very program that runs say what it makes of its files: it
// knows its own defaults and how it merges.
func (d *daemon) readProcess(ctx context.Context, proc string) {
	dir := filepath.Join(proc, strconv.Itoa(d.pid))
	args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil || d.pid == 0 {
		d.configErr = fmt.Errorf("its process %d cannot be looked at: run as root, in its process namespace", d.pid)
		return
	}
	argv := strings.Split(strings.TrimRight(string(args), "\x00"), "\x00")
	d.mainFile = configFlag(argv[1:])
	if !filepath.IsAbs(d.mainFile) {
		if cwd, err := os.Readlink(filepath.Join(dir, "cwd")); err == nil {
			d.mainFile = filepath.Join(cwd, d.mainFile)
		}
	}
	d.path = environ(dir, "PATH")
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "exe"), "--config", d.mainFile, "config", "dump")
	cmd.Args[0] = argv[0] // programs that are several choose by it
	cmd.Env = append(os.Environ(), "PATH="+d.path)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		d.configErr = fmt.Errorf("%s --config %s config dump: %w: %s", argv[0], d.mainFile, err, strings.TrimSpace(stderr.String()))
		return
	}
	if err := toml.Unmarshal(out, &d.config); err != nil {
		d.configErr = fmt.Errorf("what containerd makes of its configuration: %w", err)
		return
	}
	d.files = readFiles(d.mainFile)
}

// configFlag is the value of --config, or containerd's default.
func configFlag(args []string) string {
	for i, a := range args {
		for _, flag := range []string{"--config", "-config", "-c", "--c"} {
			if a == flag && i+1 < len(args) {
				return args[i+1]
			}
			if v, ok := strings.CutPrefix(a, flag+"="); ok {
				return v
			}
		}
	}
	return "/etc/containerd/config.toml"
}

func environ(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err != nil {
		return os.Getenv(name)
	}
	for v := range strings.SplitSeq(string(b), "\x00") {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// readFiles reads the main file and its imports in the order in which containerd
// merges them. Files that cannot be read are left out: containerd says so itself.
func readFiles(path string) (files []file) {
	seen := map[string]bool{}
	for pending := []string{path}; len(pending) > 0; {
		name := pending[0]
		pending = pending[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		b, err := os.ReadFile(name)
		var t tree
		if err != nil || toml.Unmarshal(b, &t) != nil {
			continue
		}
		files = append(files, file{name, t})
		for _, i := range t.strings("imports") {
			if !filepath.IsAbs(i) {
				i = filepath.Join(filepath.Dir(name), i)
			}
			matches, err := filepath.Glob(i)
			if err == nil {
				pending = append(pending, matches...)
			}
		}
	}
	return files
}

// last is the name of the last file that has the key, or the drop-in's place.
func (d *daemon) last(keys ...string) string {
	for i := len(d.files) - 1; i >= 0; i-- {
		if d.files[i].content.get(keys...) != nil {
			return d.files[i].name
		}
	}
	return ""
}
