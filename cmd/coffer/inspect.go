// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/coffer-cc/coffer/imagepull/publish"
)

func (p *process) inspectCommand() *cobra.Command {
	var (
		flags  registryFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "inspect REF",
		Short: "Show which layers of an image are encrypted, and for which keys",
		Long: "Show which layers of an image are encrypted, and for which keys. No key is needed,\n" +
			"so what the image claims is shown, not proved.\n\n" + referenceHelp,
		Example: "  coffer inspect registry.example.com/app:encrypted\n  coffer inspect oci:app:encrypted --json",
		Args:    arguments("REF"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseReference(args[0])
			if err != nil {
				return err
			}
			access, err := flags.access(p.getenv)
			if err != nil {
				return err
			}
			report, err := publish.Inspect(cmd.Context(), ref, access)
			if err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(p.stdout)
				encoder.SetEscapeHTML(false)
				encoder.SetIndent("", "  ")
				return encoder.Encode(report)
			}
			return printReport(p.stdout, report)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printReport(out io.Writer, report publish.Report) error {
	fmt.Fprintf(out, "%s\n%s\n", report.Reference, report.Digest)
	var problems []string
	for _, image := range report.Images {
		fmt.Fprintf(out, "\nimage %s %s\n", image.Platform, image.Digest)
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "LAYER\tSIZE\tMEDIA TYPE\tCIPHER\tKEYS")
		for _, layer := range image.Layers {
			cipher, keys := "not encrypted", "-"
			if layer.Encrypted {
				cipher, keys = orDash(layer.Cipher), orDash(keyNames(layer.Recipients))
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", short(layer.Digest), size(layer.Size), shortType(layer.MediaType), cipher, keys)
			for _, problem := range layer.Problems {
				problems = append(problems, fmt.Sprintf("layer %s: %s", short(layer.Digest), problem))
			}
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	encrypted, all := report.Encrypted()
	fmt.Fprintf(out, "\n%d of %d layers encrypted\n", encrypted, all)
	for _, problem := range problems {
		fmt.Fprintf(out, "problem: %s\n", problem)
	}
	return nil
}

// keyNames writes each wrapped key as its name, or as scheme and algorithm.
func keyNames(recipients []publish.RecipientReport) string {
	var names []string
	for _, r := range recipients {
		name := r.Scheme
		if r.Algorithm != "" && r.Scheme != "kbs" {
			name += " " + r.Algorithm
		}
		if len(r.KeyIDs) > 0 {
			name += " " + strings.Join(r.KeyIDs, " ")
		}
		if r.Count > 1 {
			name += fmt.Sprintf(" (%d recipients)", r.Count)
		}
		names = append(names, strings.TrimPrefix(name, "kbs "))
	}
	return strings.Join(names, ", ")
}

// shortType leaves out what all image layers have in common.
func shortType(mediaType string) string {
	for _, prefix := range []string{"application/vnd.oci.image.layer.v1.", "application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."} {
		if rest, ok := strings.CutPrefix(mediaType, prefix); ok {
			return rest
		}
	}
	return mediaType
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
