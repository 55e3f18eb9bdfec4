// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coffer-cc/coffer/cdh/keyprovider"
	"github.com/coffer-cc/coffer/imagepull/publish"
)

const encryptHelp = `Encrypt every layer of the image SRC and write it to DST. The image's
configuration stays as it is; each layer gets a fresh key, which is wrapped for
every recipient:

  kbs:///REPOSITORY/TYPE/TAG  a key of a key broker service, which gives it to
                              confidential machines that its policies allow
  jwe:PUBLIC_KEY.pem          who has the private key (skopeo, nerdctl, …)
  pkcs7:CERTIFICATE.pem       who has the certificate's key

With a kbs recipient a new random key is made and registered with the service
before the image is written (--kbs and --admin-token), or the key is read from
a file (--key), or both. A key that is registered already is not replaced,
since images encrypted for it could never be read again.

` + referenceHelp + `

Where a virtual machine pulls the image by itself (Kata), its host sees no file of
it and cannot tell the ids of a USER that is a name. For such images the names and
ids of all users and groups are written into the manifest, in the clear, as is the
rest of it; --users always does so for every image, --users never for none.

Nothing is visible at DST before the image is complete. Standard output is the
new image's reference, pinned to its digest.`

// encryptFlags are the flags of coffer encrypt.
type encryptFlags struct {
	to        []string
	key       string
	overwrite bool
	platform  string
	tempDir   string
	users     string
	quiet     bool
	kbs       kbsFlags
	registry  registryFlags
}

func (p *process) encryptCommand() *cobra.Command {
	flags := &encryptFlags{}
	cmd := &cobra.Command{
		Use:   "encrypt SRC DST --to RECIPIENT [--to RECIPIENT]…",
		Short: "Encrypt an image's layers and register the key",
		Long:  encryptHelp,
		Example: `  coffer encrypt docker.io/library/alpine:3 registry.example.com/alpine:encrypted \
    --to kbs:///default/key/alpine --kbs https://kbs.example.com --admin-token admin.token
  coffer encrypt oci:app:plain oci:app-encrypted:v1 --to jwe:public.pem`,
		Args: arguments("SRC", "DST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.encrypt(cmd, flags, args[0], args[1])
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&flags.to, "to", nil, "`RECIPIENT`; repeat for more")
	f.StringVar(&flags.key, "key", "", "`FILE` with the 32 raw bytes of the key for kbs recipients; made if missing")
	f.BoolVar(&flags.overwrite, "overwrite-key", false, "replace a registered key: images encrypted for the old one become unreadable")
	f.StringVar(&flags.platform, "platform", "", "take only the image for `OS/ARCH[/VARIANT]` (default: all of an index)")
	f.StringVar(&flags.tempDir, "temp-dir", "", "`FOLDER` for ciphertext on its way, as large as the layers in work (default: the system's)")
	f.StringVar(&flags.users, "users", "auto", "`WHICH` images tell hosts their users and groups: auto (whose USER is a name), always, never")
	f.BoolVarP(&flags.quiet, "quiet", "q", false, "print only the new reference")
	flags.kbs.add(f)
	flags.registry.add(cmd)
	return cmd
}

func (p *process) encrypt(cmd *cobra.Command, flags *encryptFlags, from, to string) error {
	src, err := parseReference(from)
	if err != nil {
		return err
	}
	dst, err := parseReference(to)
	if err != nil {
		return err
	}
	targets, err := parseRecipients(flags.to)
	if err != nil {
		return err
	}
	options := publish.Options{TempDir: flags.tempDir}
	if options.Accounts, err = parseAccounts(flags.users); err != nil {
		return err
	}
	if flags.platform != "" {
		if options.Platform, err = publish.ParsePlatform(flags.platform); err != nil {
			return usageError{err}
		}
	}
	if options.Access, err = flags.registry.access(p.getenv); err != nil {
		return err
	}
	keys, err := p.newRegistration(flags, targets)
	if err != nil {
		return err
	}
	defer keys.clear()
	if options.Recipients, err = targets.build(keys.keks); err != nil {
		return err
	}
	options.Ready = keys.register
	var shown *progress
	if !flags.quiet {
		shown = newProgress(p.stderr)
		options.Progress = shown.event
	}
	result, err := publish.Encrypt(cmd.Context(), src, dst, options)
	if shown != nil {
		shown.close()
	}
	if err != nil {
		return keys.takeBack(context.WithoutCancel(cmd.Context()), err)
	}
	if !flags.quiet {
		p.summarize(result, targets, keys)
	}
	_, err = fmt.Fprintln(p.stdout, dst.Pin(result.Image.Digest))
	return err
}

func (p *process) summarize(result publish.Result, targets recipients, keys *registration) {
	fmt.Fprintf(p.stderr, "encrypted %s of %s for %s\n", count(len(result.Layers), "layer"), count(result.Images, "image"), targets.names())
	if n := len(result.Dropped); n > 0 {
		fmt.Fprintf(p.stderr, "left out %s, made for the plain image\n", count(n, "attestation"))
	}
	if result.Accounts > 0 {
		fmt.Fprintf(p.stderr, "told hosts the users and groups of %s (see --users)\n", count(result.Accounts, "image"))
	}
	for _, line := range append(result.Notes, keys.report()...) {
		fmt.Fprintln(p.stderr, line)
	}
}

func parseAccounts(which string) (publish.Accounts, error) {
	switch which {
	case "auto":
		return publish.NamedAccounts, nil
	case "always":
		return publish.AllAccounts, nil
	case "never":
		return publish.NoAccounts, nil
	}
	return "", usagef("--users %q: say auto, always or never", which)
}

func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// newRegistration finds the key of each kbs recipient, and where it goes.
func (p *process) newRegistration(flags *encryptFlags, targets recipients) (*registration, error) {
	r := &registration{kids: targets.kids, overwrite: flags.overwrite, keyFile: flags.key}
	if len(targets.kids) == 0 {
		for name, value := range map[string]string{"--kbs": flags.kbs.url, "--key": flags.key} {
			if value != "" {
				return nil, usagef("%s is for kbs recipients: add --to kbs:///REPOSITORY/TYPE/TAG or leave it out", name)
			}
		}
		return r, nil
	}
	flags.kbs.fromEnv(p.getenv)
	if flags.kbs.url == "" && flags.key == "" {
		return nil, usagef("the key of %s would be lost: register it with --kbs URL --admin-token FILE, or keep it with --key FILE", targets.kids[0])
	}
	if flags.kbs.url != "" {
		if err := r.connect(flags.kbs); err != nil {
			return nil, err
		}
	}
	for range targets.kids {
		if flags.key == "" {
			r.keks = append(r.keks, keyprovider.GenerateKEK())
			continue
		}
		kek, created, err := keyFile(flags.key)
		if err != nil {
			return nil, err
		}
		r.keks = append(r.keks, kek)
		r.keyCreated = r.keyCreated || created
	}
	return r, nil
}
