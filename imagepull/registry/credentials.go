// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import "github.com/coffer-cc/coffer/imagepull/registry/login"

// ParseCredentials is login.Parse for a document whose programs are not run.
func ParseCredentials(config []byte) (*login.Config, error) {
	return login.Parse(config, login.Options{})
}
