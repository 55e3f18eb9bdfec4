// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

// InspectLayer is inspectLayer, for tests of annotations that no tool writes.
var InspectLayer = inspectLayer //nolint:gochecknoglobals // test only
