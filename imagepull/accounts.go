// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"cmp"

	"github.com/coffer-cc/coffer/imagepull/bundle"
	"github.com/coffer-cc/coffer/imagepull/registry"
)

// Annotations of layers, which containerd hands to the snapshotter of a host.
const (
	passwdAnnotation = "containerd.io/snapshot/coffer.passwd"
	groupAnnotation  = "containerd.io/snapshot/coffer.group"
)

// toldAccounts are the users and groups that annotations of the layers tell to
// hosts. Those of a higher layer are laid over those of a lower one.
func toldAccounts(image registry.Image) (told bundle.Accounts) {
	for _, l := range image.Layers {
		told.Passwd = cmp.Or(l.Annotations[passwdAnnotation], told.Passwd)
		told.Group = cmp.Or(l.Annotations[groupAnnotation], told.Group)
	}
	return told
}
