// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

// InspectLayer is inspectLayer, for tests of annotations that no tool writes.
var InspectLayer = inspectLayer //nolint:gochecknoglobals // test only

// ToldAccounts are the annotations for an image with these files and this USER.
func ToldAccounts(passwd, group, user string) map[string]string {
	return newAccountFiles(passwd, group).bounded(user)
}
