// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// maxDir is the longest folder name, in bytes, in which every socket path
// stays below the kernel's limit of 107.
const maxDir = 36

// Options of a testbed.
type Options struct {
	// Tools is the folder of containerd, ctr, containerd-shim-runc-v2, runc,
	// crictl and registry. Needed.
	Tools string
	// Programs is the folder of coffer's own programs. Needed for every
	// component but the registry and a plain containerd.
	Programs string
	// Dir is the parent of the testbed's folder; "" means the system's
	// folder for temporary files. Where the name is too long for sockets,
	// the folder is in /tmp.
	Dir string
	// Faults puts a fault proxy in front of the registry: all others then
	// know the registry under the proxy's address.
	Faults bool
	// Release is that of containerd in Tools, such as "1.7"; "" is the newest.
	Release string
	// Kata runs pods as Kata does, and not as containerd's own runtime.
	Kata *Kata
	// Plain leaves coffer's programs out: a registry and a containerd whose
	// snapshotter is overlayfs.
	Plain bool
	// GuestStoreBytes limits the guest's store to this size, on a file
	// system of its own; 0 means the store is an ordinary folder.
	GuestStoreBytes int64
}

// Testbed is one machine. New makes it, Start runs it, Close ends it.
type Testbed struct {
	// Dir is the private folder; Logs the one in it with the log files.
	Dir, Logs string
	// RegistryHost is host:port under which the registry is known.
	RegistryHost string
	// KBSURL is where coffer-kbs serves.
	KBSURL string
	// Proxy is in front of the registry if Options.Faults asked for it.
	Proxy *FaultProxy

	Registry, KBS, Guest, Snapshotter, Containerd *Component

	opts   Options
	box    *sandbox
	cgroup string // name of the parent of all containers' cgroups
	pause  string // reference of the pause image

	extra []*Component

	lock    *os.File
	closing sync.Once
}

// New makes the folder, the namespaces and the configuration of a testbed and
// starts nothing. The caller calls Close, also when Start fails.
func New(ctx context.Context, opts Options) (*Testbed, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a testbed needs root: it runs containerd")
	}
	dir, lock, err := makeDir(parentFor(opts.Dir))
	if err != nil {
		return nil, err
	}
	t := &Testbed{Dir: dir, lock: lock, Logs: filepath.Join(dir, "log"), opts: opts, cgroup: filepath.Base(dir)}
	if err := t.prepare(ctx); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Testbed) prepare(ctx context.Context) error {
	for _, d := range []string{"log", "n", "c/cni", "c/opt", "pods", "guest", "tmp", "own"} {
		if err := os.MkdirAll(filepath.Join(t.Dir, d), 0o755); err != nil {
			return err
		}
	}
	var err error
	if t.box, err = newSandbox(); err != nil {
		return err
	}
	if err := t.prepareRegistry(ctx); err != nil {
		return err
	}
	if !t.opts.Plain {
		for _, f := range []func(context.Context) error{t.prepareKBS, t.prepareGuest, t.prepareSnapshotter} {
			if err := f(ctx); err != nil {
				return err
			}
		}
	}
	return t.prepareContainerd(ctx)
}

// Start starts every component, in the order in which one needs the other,
// and pushes the pause image.
func (t *Testbed) Start(ctx context.Context) error {
	for _, c := range t.components() {
		if err := c.Start(ctx); err != nil {
			return err
		}
		if c == t.Registry {
			if err := t.pushPause(ctx); err != nil {
				return fmt.Errorf("push the pause image: %w", err)
			}
		}
	}
	return nil
}

// components lists what this testbed has, in the order of Start.
func (t *Testbed) components() []*Component {
	all := []*Component{t.Registry, t.KBS, t.Guest, t.Snapshotter, t.Containerd}
	return slices.DeleteFunc(all, func(c *Component) bool { return c == nil })
}

// Close stops everything, kills what does not stop, and removes the cgroups
// and the folder. It reports components that did not end well, and may be
// called again.
func (t *Testbed) Close() error {
	var err error
	t.closing.Do(func() { err = t.closeAll() })
	return err
}

func (t *Testbed) closeAll() error {
	var errs []error
	for _, c := range slices.Backward(append(t.components(), t.extra...)) {
		if c.Running() {
			errs = append(errs, c.Stop())
		}
	}
	if t.Proxy != nil {
		errs = append(errs, t.Proxy.Close())
	}
	if t.box != nil {
		t.box.close()
	}
	errs = append(errs, removeCgroups(t.cgroup), os.RemoveAll(t.Dir), t.lock.Close())
	return errors.Join(errs...)
}

// Mounts lists the mount points in the testbed's folder.
func (t *Testbed) Mounts() ([]string, error) { return t.box.mounts(t.Dir) }

// Processes lists the command lines of the testbed's processes.
func (t *Testbed) Processes() ([]string, error) { return t.box.processes() }

// component makes a component whose program speaks sd_notify. The path of a
// program of ours or of the tools is looked up by its name.
func (t *Testbed) component(name, folder string, args ...string) *Component {
	return &Component{
		Name: name, Log: filepath.Join(t.Logs, name+".log"),
		box: t.box, path: filepath.Join(folder, name), args: args,
		env:    []string{"PATH=" + t.opts.Tools + ":/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR=" + t.path("tmp")},
		notify: t.path("n", name),
	}
}

// Path is a path in the testbed's folder, for the caller's own files. The name
// must not be one of a component.
func (t *Testbed) Path(name string) string { return t.path("own", name) }

// path is a path in the testbed's folder.
func (t *Testbed) path(elem ...string) string {
	return filepath.Join(append([]string{t.Dir}, elem...)...)
}

// freePort asks the kernel for a loopback port that nobody uses.
func freePort(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
