// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/coffer-cc/coffer/kbs"
	"github.com/coffer-cc/coffer/kbs/resource"
)

const (
	envKBS        = "COFFER_KBS"
	envAdminToken = "COFFER_ADMIN_TOKEN_FILE"
	envKBSCA      = "COFFER_KBS_CA"

	maxUpload = 16 << 20        // bytes of a file for the service
	patience  = 8 * time.Second // for an answer of the service, tries included
)

// kbsFlags name the key broker service and the right to administer it.
type kbsFlags struct {
	url, tokenFile, caFile string
	plainHTTP              bool
}

func (f *kbsFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.url, "kbs", "", "`URL` of the key broker service (default: $"+envKBS+")")
	flags.StringVar(&f.tokenFile, "admin-token", "", "`FILE` with an admin token for it (default: $"+envAdminToken+")")
	flags.StringVar(&f.caFile, "kbs-ca", "", "PEM `FILE` with certificates to trust for it, beside the system's (default: $"+envKBSCA+")")
	flags.BoolVar(&f.plainHTTP, "kbs-plain-http", false, "allow an http URL of another machine: token and keys can be read on the way")
}

func (f *kbsFlags) fromEnv(getenv func(string) string) {
	if f.url == "" {
		f.url = getenv(envKBS)
	}
	if f.tokenFile == "" {
		f.tokenFile = getenv(envAdminToken)
	}
	if f.caFile == "" {
		f.caFile = getenv(envKBSCA)
	}
}

// admin returns a client. It makes no connection.
func (f *kbsFlags) admin() (*kbs.Admin, error) {
	switch {
	case f.url == "":
		return nil, usagef("which key broker service? name it with --kbs URL or $%s", envKBS)
	case f.tokenFile == "":
		return nil, usagef("%s wants an admin token: name its file with --admin-token FILE or $%s", f.url, envAdminToken)
	}
	token, err := os.ReadFile(f.tokenFile)
	if err != nil {
		return nil, usagef("admin token: %w", err)
	}
	if bytes.HasPrefix(token, []byte("-----BEGIN")) {
		return nil, usagef("admin token: %s holds a key: name the file that coffer-kbs admin token wrote", f.tokenFile)
	}
	options := kbs.AdminOptions{Deadline: patience, PlainHTTP: f.plainHTTP}
	if f.caFile != "" {
		if options.CA, err = os.ReadFile(f.caFile); err != nil {
			return nil, usagef("certificates to trust (--kbs-ca, $%s): %w", envKBSCA, err)
		}
	}
	admin, err := kbs.NewAdmin(f.url, strings.TrimSpace(string(token)), options)
	if errors.Is(err, kbs.ErrPlainHTTP) {
		return nil, usagef("kbs %s: %w, or say --kbs-plain-http if the way is protected otherwise", f.url, kbs.ErrPlainHTTP)
	}
	if err != nil {
		return nil, usageError{err}
	}
	return admin, nil
}

// kbsCommands are the commands of coffer kbs, which share their flags.
type kbsCommands struct {
	*process
	flags     kbsFlags
	overwrite bool
}

func (p *process) kbsCommand() *cobra.Command {
	c := &kbsCommands{process: p}
	root := group("kbs", "Administer a key broker service")
	c.flags.add(root.PersistentFlags())

	resources := group("resource", "Keys and other secrets")
	set := c.command("set PATH FILE", "Store FILE (- is standard input) as REPOSITORY/TYPE/TAG",
		arguments("PATH", "FILE"), c.setResource)
	set.Flags().BoolVar(&c.overwrite, "overwrite", false, "replace what is there: images encrypted for it become unreadable")
	resources.AddCommand(set,
		c.command("list", "List the resources", arguments(), c.listResources),
		c.command("delete PATH", "Delete REPOSITORY/TYPE/TAG: images encrypted for it become unreadable",
			arguments("PATH"), c.deleteResource))

	resourcePolicy := group("resource-policy", "The Rego policy that decides who gets a resource")
	resourcePolicy.AddCommand(c.command("get", "Print the policy", arguments(),
		func(ctx context.Context, admin *kbs.Admin, _ []string) error {
			return c.print(admin.ResourcePolicy(ctx))
		}))
	resourcePolicy.AddCommand(c.command("set FILE", "Replace the policy", arguments("FILE"),
		func(ctx context.Context, admin *kbs.Admin, args []string) error {
			return c.upload(args[0], func(data []byte) error { return admin.SetResourcePolicy(ctx, data) })
		}))

	attestationPolicy := group("attestation-policy", "The Rego policies that appraise evidence")
	attestationPolicy.AddCommand(c.command("get ID", "Print the policy ID, such as default_cpu", arguments("ID"),
		func(ctx context.Context, admin *kbs.Admin, args []string) error {
			return c.print(admin.AttestationPolicy(ctx, args[0]))
		}))
	attestationPolicy.AddCommand(c.command("set ID FILE", "Replace the policy ID, such as default_cpu", arguments("ID", "FILE"),
		func(ctx context.Context, admin *kbs.Admin, args []string) error {
			return c.upload(args[1], func(data []byte) error { return admin.SetAttestationPolicy(ctx, args[0], data) })
		}))

	referenceValues := group("reference-value", "The measurements that machines are compared with")
	referenceValues.AddCommand(c.command("set FILE", "Register the values of a JSON object, name to value", arguments("FILE"), c.setReferenceValues))

	root.AddCommand(resources, resourcePolicy, attestationPolicy, referenceValues)
	return root
}

// command returns a command that talks to the service.
func (c *kbsCommands) command(use, short string, args cobra.PositionalArgs,
	run func(context.Context, *kbs.Admin, []string) error,
) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error {
			c.flags.fromEnv(c.getenv)
			admin, err := c.flags.admin()
			if err != nil {
				return err
			}
			defer func() { _ = admin.Close() }() // it only closes idle connections
			return run(cmd.Context(), admin, args)
		},
	}
}

func (c *kbsCommands) setResource(ctx context.Context, admin *kbs.Admin, args []string) error {
	id, err := parseID(args[0])
	if err != nil {
		return err
	}
	return c.upload(args[1], func(data []byte) error {
		defer clear(data)
		err := admin.PutResource(ctx, id, data, kbs.PutOptions{Overwrite: c.overwrite})
		if errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("%s already has %s: name another one, or replace it with --overwrite: what was encrypted for it becomes unreadable",
				c.flags.url, id)
		}
		return err
	})
}

func (c *kbsCommands) listResources(ctx context.Context, admin *kbs.Admin, _ []string) error {
	ids, err := admin.ListResources(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := fmt.Fprintln(c.stdout, id); err != nil {
			return err
		}
	}
	return nil
}

// print shows a policy's text.
func (c *kbsCommands) print(text []byte, err error) error {
	if err == nil {
		_, err = c.stdout.Write(text)
	}
	return err
}

func (c *kbsCommands) deleteResource(ctx context.Context, admin *kbs.Admin, args []string) error {
	id, err := parseID(args[0])
	if err != nil {
		return err
	}
	return admin.DeleteResource(ctx, id)
}

func (c *kbsCommands) setReferenceValues(ctx context.Context, admin *kbs.Admin, args []string) error {
	return c.upload(args[0], func(data []byte) error {
		values := map[string]any{}
		var texts map[string]json.RawMessage // numbers stay as they are written
		if err := json.Unmarshal(data, &texts); err != nil || len(texts) == 0 {
			return usagef(`%s: want a JSON object of names and values, as in {"mr_td": ["…"], "xfam": ["…"]}`, args[0])
		}
		for name, text := range texts {
			values[name] = text
		}
		return admin.SetReferenceValues(ctx, values)
	})
}

// parseID reads REPOSITORY/TYPE/TAG, also as a kbs:/// URI.
func parseID(path string) (resource.ID, error) {
	id, err := resource.ParseID(strings.TrimPrefix(path, "kbs:///"))
	if err != nil {
		return id, usagef("resource %q: %w: write REPOSITORY/TYPE/TAG, as in default/key/app", path, err)
	}
	return id, nil
}

// upload reads a file, or standard input for "-", and hands it to send.
func (c *kbsCommands) upload(name string, send func([]byte) error) error {
	in := c.stdin
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return usageError{err}
		}
		defer file.Close()
		in = file
	}
	data, err := io.ReadAll(io.LimitReader(in, maxUpload+1))
	switch {
	case err != nil:
		return fmt.Errorf("read %s: %w", name, err)
	case len(data) == 0:
		return usagef("%s is empty", name)
	case len(data) > maxUpload:
		return usagef("%s is larger than %d bytes", name, maxUpload)
	}
	return send(data)
}
