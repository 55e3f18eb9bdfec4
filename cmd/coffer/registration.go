// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull/publish"
	"github.com/coffer-cc/coffer/kbs"
	"github.com/coffer-cc/coffer/kbs/resource"
)

// takeBackTime bounds the removal of keys after a failure.
const takeBackTime = 15 * time.Second

// registration is the keys of an image, and their way to the key broker
// service.
type registration struct {
	kids       []resource.URI
	keks       [][]byte // one for each kid
	overwrite  bool
	keyFile    string
	keyCreated bool

	service string // URL
	admin   *kbs.Admin
	ids     []resource.ID // one for each kid, when admin is set
	done    []resource.ID
}

// connect checks that every key can be registered. It makes no connection.
func (r *registration) connect(flags kbsFlags) error {
	for _, kid := range r.kids {
		id, err := resource.ParseID(kid.Path)
		if err != nil || kid.Plugin != "" && kid.Plugin != resource.DefaultPlugin {
			return usagef("%s is not a resource that can be registered: use --key FILE without --kbs", kid)
		}
		r.ids = append(r.ids, id)
	}
	admin, err := flags.admin()
	if err != nil {
		return err
	}
	r.service, r.admin = flags.url, admin
	return nil
}

// register puts the keys into the service.
func (r *registration) register(ctx context.Context) error {
	if r.admin == nil {
		return nil
	}
	for i, id := range r.ids {
		err := r.admin.PutResource(ctx, id, r.keks[i], kbs.PutOptions{Overwrite: r.overwrite})
		if err != nil {
			return r.takeBack(context.WithoutCancel(ctx), r.explain(id, err))
		}
		r.done = append(r.done, id)
	}
	return nil
}

func (r *registration) explain(id resource.ID, err error) error {
	switch {
	case !errdefs.IsAlreadyExists(err):
		return fmt.Errorf("register key %s: %w", id.URI(), err)
	case r.keyFile != "":
		return fmt.Errorf("%s already has a key %s: if it is the one in %s, leave out --kbs and --admin-token; else name another key, or replace it with --overwrite-key",
			r.service, id.URI(), r.keyFile)
	}
	return fmt.Errorf("%s already has a key %s: name another one, use the existing one with --key FILE and without --kbs, or replace it with --overwrite-key",
		r.service, id.URI())
}

// takeBack removes keys of an image that does not exist, and adds to err what
// became of them. The key of an image that may exist stays.
func (r *registration) takeBack(ctx context.Context, err error) error {
	if len(r.done) == 0 {
		return err
	}
	ids := r.done
	r.done = nil
	if errors.Is(err, publish.ErrOutcomeUnknown) {
		return fmt.Errorf("%w; key %s stays registered with %s: if the image is not there, delete it with coffer kbs resource delete", err, join(ids), r.service)
	}
	if r.overwrite {
		return fmt.Errorf("%w; %s now has the new key %s, the old one is lost", err, r.service, join(ids))
	}
	ctx, cancel := context.WithTimeout(ctx, takeBackTime)
	defer cancel()
	for i, id := range ids {
		if left := r.admin.DeleteResource(ctx, id); left != nil {
			return fmt.Errorf("%w; key %s stays registered (%w): delete it with coffer kbs resource delete", err, join(ids[i:]), left)
		}
	}
	return fmt.Errorf("%w; key %s was deleted from %s again", err, join(ids), r.service)
}

func join(ids []resource.ID) string {
	var names []string
	for _, id := range ids {
		names = append(names, id.URI().String())
	}
	return strings.Join(names, ", ")
}

// report says where the keys are.
func (r *registration) report() []string {
	var lines []string
	if len(r.done) > 0 {
		lines = append(lines, fmt.Sprintf("registered key %s with %s", join(r.done), r.service))
	}
	if r.keyCreated {
		lines = append(lines, "wrote a new key to "+r.keyFile)
	}
	if r.admin == nil && len(r.kids) > 0 {
		lines = append(lines, fmt.Sprintf("not registered with any service: coffer kbs resource set %s %s", r.kids[0].Path, r.keyFile))
	}
	return lines
}

// clear overwrites the keys.
func (r *registration) clear() {
	for _, kek := range r.keks {
		clear(kek)
	}
	if r.admin != nil {
		_ = r.admin.Close() // it only closes idle connections
	}
}
