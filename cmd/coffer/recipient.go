// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/coffer-cc/coffer/cdh/keyprovider"
	"github.com/coffer-cc/coffer/imagepull/publish"
	"github.com/coffer-cc/coffer/kbs/resource"
)

const recipientForms = "write kbs:///REPOSITORY/TYPE/TAG, jwe:PUBLIC_KEY.pem or pkcs7:CERTIFICATE.pem"

// recipients are the parsed --to flags.
type recipients struct {
	kids  []resource.URI
	jwe   [][]byte
	pkcs7 [][]byte
}

// parseRecipients reads the --to flags and the files they name.
func parseRecipients(flags []string) (recipients, error) {
	var r recipients
	if len(flags) == 0 {
		return r, usagef("nobody to encrypt for: name a recipient with --to: %s", recipientForms)
	}
	for _, flag := range flags {
		if err := r.add(flag); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *recipients) add(flag string) error {
	scheme, value, found := strings.Cut(flag, ":")
	switch {
	case scheme == "kbs" || strings.HasPrefix(scheme, "kbs+"):
		return r.addKBS(flag)
	case !found && strings.Count(flag, "/") >= 2:
		return usagef("recipient %q names no scheme: for a key of a key broker service write kbs:///%s", flag, strings.Trim(flag, "/"))
	case !found:
		return usagef("recipient %q names no scheme: %s", flag, recipientForms)
	case scheme == "jwe":
		return addFile(&r.jwe, flag, value, publish.JWE)
	case scheme == "pkcs7":
		return addFile(&r.pkcs7, flag, value, publish.PKCS7)
	case scheme == "provider":
		return usagef("recipient %q: key providers are not called: for a key of a key broker service write kbs:///REPOSITORY/TYPE/TAG", flag)
	}
	return usagef("recipient %q: unknown scheme %q: %s", flag, scheme, recipientForms)
}

func (r *recipients) addKBS(flag string) error {
	uri, err := resource.ParseURI(flag)
	if err != nil {
		return usagef("recipient %q: %w: write kbs:///REPOSITORY/TYPE/TAG, as in kbs:///default/key/app", flag, err)
	}
	if uri.Plugin == "" || uri.Plugin == resource.DefaultPlugin {
		if _, err := resource.ParseID(uri.Path); err != nil {
			return usagef("recipient %q: %w: write kbs:///REPOSITORY/TYPE/TAG, as in kbs:///default/key/app", flag, err)
		}
	}
	if slices.Contains(r.kids, uri) {
		return usagef("recipient %q is named twice", flag)
	}
	r.kids = append(r.kids, uri)
	return nil
}

// addFile reads a key and checks that it can be used.
func addFile(list *[][]byte, flag, name string, use func(...[]byte) (publish.Recipient, error)) error {
	if name == "" {
		return usagef("recipient %q names no file: %s", flag, recipientForms)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return usagef("recipient %q: %w", flag, err)
	}
	if _, err := use(data); err != nil {
		return usagef("recipient %q: %w", flag, err)
	}
	*list = append(*list, data)
	return nil
}

// build returns what publish encrypts to. keks holds one key for each kid.
func (r *recipients) build(keks [][]byte) ([]publish.Recipient, error) {
	var all []publish.Recipient
	wrapper := keyprovider.New()
	for i, kid := range r.kids {
		if err := wrapper.Add(kid.String(), keks[i]); err != nil {
			return nil, err
		}
		all = append(all, publish.NewRecipient(wrapper, keyprovider.EncryptTo(kid.String()).EncryptConfig.Parameters))
	}
	for _, group := range []struct {
		keys [][]byte
		use  func(...[]byte) (publish.Recipient, error)
	}{{r.jwe, publish.JWE}, {r.pkcs7, publish.PKCS7}} {
		if len(group.keys) == 0 {
			continue
		}
		recipient, err := group.use(group.keys...)
		if err != nil {
			return nil, err
		}
		all = append(all, recipient)
	}
	return all, nil
}

// names lists the recipients for people.
func (r *recipients) names() string {
	var names []string
	for _, kid := range r.kids {
		names = append(names, kid.String())
	}
	if n := len(r.jwe); n > 0 {
		names = append(names, fmt.Sprintf("%d jwe", n))
	}
	if n := len(r.pkcs7); n > 0 {
		names = append(names, fmt.Sprintf("%d pkcs7", n))
	}
	return strings.Join(names, ", ")
}
