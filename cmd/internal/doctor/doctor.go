// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package doctor looks at a node that runs coffer and says what is wrong and how
// to mend it: the sockets, what containerd makes of its configuration, Kata,
// kubelet, the guest, the key broker, the clock and the machine.
//
// It changes nothing. What it reads belongs to the host, which the TEE does not
// trust: a healthy node proves nothing about the TEE. Being the node's operator's
// tool, it reads files, asks services and runs containerd's own `config dump`.
package doctor

import (
	"context"
	"net/http"
	"time"
)

// Level is how bad a finding is.
type Level string

// The levels. Only a problem makes the node unfit.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Problem Level = "problem"
)

// Finding is one thing that a check has to say.
type Finding struct {
	// Check is the name of the check.
	Check string `json:"check"`
	Level Level  `json:"level"`
	// Text says what was found.
	Text string `json:"text"`
	// Fix is the line to change, with its file, or the command to run. Empty
	// where there is nothing to do.
	Fix string `json:"fix,omitempty"`
}

// Options of a run. The zero value examines a node with the usual paths.
type Options struct {
	// SnapshotterConfig and GuestConfig are configuration files. Empty means the
	// usual path, and the defaults if it is not there.
	SnapshotterConfig, GuestConfig string
	// Containerd is the path of containerd's socket. Empty means that of the
	// snapshotter's configuration.
	Containerd string
	// Kubelet is kubelet's configuration file. Empty means the usual path.
	Kubelet string
	// Kata is Kata's configuration file. Empty means that of the runtime
	// handlers, or a usual path.
	Kata string
	// KBS is the URL of the key broker. Empty means that of the guest's file.
	KBS string
	// Proc is the proc file system. Empty means /proc.
	Proc string
	// Timeout bounds one check. Zero means 5 s.
	Timeout time.Duration
	// Now is the clock. Nil is the system's.
	Now func() time.Time
	// Transport is what asks the key broker. Nil is made from the guest's file.
	Transport http.RoundTripper
}

const defaultTimeout = 5 * time.Second

// check is one subject. It may find several things, and finds nothing where it
// does not apply.
type check struct {
	name string
	run  func(ctx context.Context, n *node) []Finding
}

// checks are all, in the order in which a failed one explains later ones.
func checks() []check {
	return []check{
		{"configuration", checkSettings},
		{"kernel", checkKernel},
		{"disk", checkDisk},
		{"snapshotter", checkSnapshotter},
		{"guest", checkGuest},
		{"containerd", checkContainerd},
		{"plugin", checkPlugin},
		{"exports", checkExports},
		{"unpack", checkUnpack},
		{"pull", checkPull},
		{"handlers", checkHandlers},
		{"pause", checkPause},
		{"helper", checkHelper},
		{"kata", checkKata},
		{"kubelet", checkKubelet},
		{"kbs", checkKBS},
		{"shared root", checkShared},
		{"leftovers", checkLeftovers},
	}
}

// Run examines the node. It always returns: what cannot be found out is a finding.
func Run(ctx context.Context, o Options) []Finding {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	n := newNode(o)
	defer n.close()
	n.look(ctx)
	var all []Finding
	for _, c := range checks() {
		ctx, cancel := context.WithTimeout(ctx, o.Timeout)
		for _, f := range c.run(ctx, n) {
			f.Check = c.name
			all = append(all, f)
		}
		cancel()
	}
	return all
}

// Unfit tells whether a finding is a problem.
func Unfit(findings []Finding) bool {
	for _, f := range findings {
		if f.Level == Problem {
			return true
		}
	}
	return false
}
