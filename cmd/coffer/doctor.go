// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-cc/coffer/cmd/internal/doctor"
)

// errUnfit is what the doctor's exit code says; the findings are printed already.
var errUnfit = errors.New("doctor: this node has problems")

func (p *process) doctorCommand() *cobra.Command {
	var o doctor.Options
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check a node that runs encrypted images, and say how to mend it",
		Long: `Check a node: the sockets, what containerd makes of its configuration, Kata,
kubelet, the guest, the key broker, the clock and the machine. Nothing is changed.
Each finding is ok, a warning or a problem, with the line to change or the command
to run. Run it as root on the node. The exit code is 1 if there is a problem.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			found := doctor.Run(cmd.Context(), o)
			var err error
			if asJSON {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				encoder.SetEscapeHTML(false)
				err = encoder.Encode(found)
			} else {
				err = printFindings(cmd.OutOrStdout(), found, quiet)
			}
			if err == nil && doctor.Unfit(found) {
				err = errUnfit
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.SnapshotterConfig, "snapshotter-config", "", "configuration of coffer-snapshotter (default /etc/coffer/snapshotter.toml)")
	f.StringVar(&o.GuestConfig, "guest-config", "", "configuration of coffer-guest (default /etc/coffer/guest.toml)")
	f.StringVar(&o.Containerd, "containerd", "", "socket of containerd (default as coffer-snapshotter's configuration says)")
	f.StringVar(&o.Kubelet, "kubelet-config", "", "configuration of kubelet (default /var/lib/kubelet/config.yaml)")
	f.StringVar(&o.Kata, "kata-config", "", "configuration of Kata (default as its runtime handlers say)")
	f.StringVar(&o.KBS, "kbs", "", "URL of the key broker (default as coffer-guest's configuration says)")
	f.DurationVar(&o.Timeout, "timeout", 0, "time for one check (default 5s)")
	f.BoolVar(&asJSON, "json", false, "print a list of {check, level, text, fix}")
	f.BoolVarP(&quiet, "quiet", "q", false, "leave out what is ok")
	return cmd
}

func printFindings(w io.Writer, found []doctor.Finding, quiet bool) error {
	var out strings.Builder
	count := map[doctor.Level]int{}
	for _, f := range found {
		count[f.Level]++
		if quiet && f.Level == doctor.OK {
			continue
		}
		fmt.Fprintf(&out, "%-8s %-13s %s\n", f.Level, f.Check, printable(f.Text))
		if f.Fix == "" {
			continue
		}
		for line := range strings.SplitSeq(f.Fix, "\n") {
			fmt.Fprintf(&out, "%24s%s\n", "", printable(line))
		}
	}
	fmt.Fprintf(&out, "%d problems, %d warnings, %d ok\n", count[doctor.Problem], count[doctor.Warning], count[doctor.OK])
	_, err := io.WriteString(w, out.String())
	return err
}
