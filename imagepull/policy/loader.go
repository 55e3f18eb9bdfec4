// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"

	"github.com/coffer-cc/coffer/imagepull/document"
)

// ResourceGetter gets what a URI names that is no file.
type ResourceGetter = document.ResourceGetter

// Refresh says how long what was read by URI stays good.
type Refresh = document.Refresh

// Loader reads policy.json by URI and reads it again when it is old. It is
// safe for concurrent use, and keeps the document in memory only.
type Loader struct{ doc *document.Loader[Policy] }

// NewLoader reads nothing yet. uri is kbs:///repository/type/tag,
// kbs+plugin://…, initdata:///name, file:///path or an absolute path; resources
// may be nil where it is a file. Errors are InvalidArgument.
func NewLoader(uri string, resources ResourceGetter, refresh Refresh) (*Loader, error) {
	doc, err := document.NewLoader("image policy", uri, resources, refresh, Parse)
	if err != nil {
		return nil, err
	}
	return &Loader{doc}, nil
}

// Policy returns the policy as it is now. Where its source cannot be reached,
// the last good one is returned until Refresh.MaxStale has passed; then, and
// where the source says no or answers with a bad policy, there is only an
// error.
func (l *Loader) Policy(ctx context.Context) (*Policy, error) { return l.doc.Load(ctx) }

// LookasideLoader is a Loader of registries.d YAML.
type LookasideLoader struct{ doc *document.Loader[Lookaside] }

// NewLookasideLoader is NewLoader for registries.d YAML.
func NewLookasideLoader(uri string, resources ResourceGetter, refresh Refresh) (*LookasideLoader, error) {
	doc, err := document.NewLoader("image policy: signature stores", uri, resources, refresh, ParseLookaside)
	if err != nil {
		return nil, err
	}
	return &LookasideLoader{doc}, nil
}

// Lookaside returns the configuration as it is now, as Loader.Policy does.
func (l *LookasideLoader) Lookaside(ctx context.Context) (*Lookaside, error) { return l.doc.Load(ctx) }
