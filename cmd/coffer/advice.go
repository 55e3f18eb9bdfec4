// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import "strings"

// advised is an error whose text names flags where the puller's own names the
// configuration file of the guest, which has none here.
type advised struct {
	error
	text string
}

func (a advised) Error() string { return a.text }
func (a advised) Unwrap() error { return a.error }

// inFlags rewrites what the puller advises.
func inFlags(err error) error {
	if err == nil {
		return nil
	}
	text := strings.NewReplacer(
		"does it speak plain HTTP, if it is asked so?", "does it speak plain HTTP, as registries of this machine are asked? Else name it with --https HOST",
		`set the TEE to "sample"`, "name it with --attester sample",
		"in [registry] credentials of coffer-guest's configuration", "with --credentials FILE",
		"to [registry] insecure of coffer-guest's configuration", "with --plain-http HOST",
		"add its CA to [registry] ca_files", "name a folder that has it with --certs-dir",
		"in [registry] certs_dir", "into the folder of --certs-dir",
		"[registry.proxy] of coffer-guest's configuration", "HTTPS_PROXY, HTTP_PROXY and NO_PROXY",
		"set policy.signatures", "name a file with --signatures",
		"the document that policy.signatures names", "the file of --signatures",
		"image.work_dir", "--root",
	).Replace(err.Error())
	return advised{err, text}
}
