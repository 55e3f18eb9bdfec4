// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Accounts says which images tell their users and groups to the hosts that run
// them, in the clear: names, ids and memberships, as annotations of the topmost
// layer. Where a guest pulls the image, containerd on the host sees no file of
// it, and has nothing else to find the ids of a USER in.
type Accounts string

const (
	// NamedAccounts are those of images whose USER is a name, which cannot
	// be run without.
	NamedAccounts Accounts = ""
	// AllAccounts are those of every image: groups and additional groups of
	// numeric users, too, are then as the image has them.
	AllAccounts Accounts = "always"
	// NoAccounts tells nothing. Who runs an image whose USER is a name then
	// sets the user by number.
	NoAccounts Accounts = "never"
)

const (
	// The prefix is that of annotations which containerd hands to the
	// snapshotter as labels. Key and value of a label have 4096 bytes.
	passwdAnnotation = "containerd.io/snapshot/coffer.passwd"
	groupAnnotation  = "containerd.io/snapshot/coffer.group"
	maxLabel         = 4096

	maxID = 1<<31 - 1
)

// wanted says whether an image with this USER tells its accounts.
func (a Accounts) wanted(user string) bool {
	name, group, _ := strings.Cut(user, ":")
	return a == AllAccounts || a == NamedAccounts && (isName(name) || isName(group))
}

func isName(s string) bool {
	_, isNumber := parseID(s)
	return s != "" && !isNumber
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}

// planAccounts reads the USER of each image and chooses the layers that are
// looked into for their accounts.
func (e *encryptor) planAccounts(ctx context.Context, n *node) error {
	for _, child := range n.children {
		if err := e.planAccounts(ctx, child); err != nil {
			return err
		}
	}
	if n.manifest == nil || e.opts.Accounts == NoAccounts {
		return nil
	}
	data, err := readBlob(ctx, e.from, n.manifest.Config)
	if err != nil {
		return fmt.Errorf("image configuration: %w", err)
	}
	var image ocispec.Image
	if json.Unmarshal(data, &image) != nil || !e.opts.Accounts.wanted(image.Config.User) {
		return nil //nolint:nilerr // what is no configuration of an image has no users
	}
	e.users[n.desc.Digest] = image.Config.User
	for _, layer := range n.manifest.Layers {
		e.scans[layer.Digest] = layerAccounts{}
	}
	return nil
}

// annotateAccounts puts the accounts of the image into the annotations of its
// topmost layer, in place of those that its source had.
func (e *encryptor) annotateAccounts(n *node, layers []ocispec.Descriptor) {
	for _, l := range layers {
		delete(l.Annotations, passwdAnnotation)
		delete(l.Annotations, groupAnnotation)
	}
	user, ok := e.users[n.desc.Digest]
	if !ok || len(layers) == 0 {
		return
	}
	passwd, group := e.merge(n.manifest.Layers)
	top := layers[len(layers)-1]
	accounts := newAccountFiles(passwd, group)
	if missing := accounts.missing(user); missing != "" {
		e.notes = append(e.notes, fmt.Sprintf("USER %q: %s is not in the image's files: a host whose guests pull the image cannot run it without a numeric user", user, missing))
	}
	for key, text := range accounts.bounded(user) {
		if text != "" {
			top.Annotations[key] = text
		}
	}
}

// merge lays the layers, bottom up, over each other.
func (e *encryptor) merge(layers []ocispec.Descriptor) (passwd, group string) {
	for _, l := range layers {
		found := e.scans[l.Digest]
		passwd, group = found.passwd.over(passwd), found.group.over(group)
	}
	return passwd, group
}

// accountFiles are lines of passwd and group, split into their fields, less what
// nobody needs to find ids: passwords, comments, folders and shells.
type accountFiles struct{ passwd, group [][]string }

func newAccountFiles(passwd, group string) accountFiles {
	var a accountFiles
	for f := range accountLines(passwd, 4) {
		if _, ok := parseID(f[3]); ok {
			a.passwd = append(a.passwd, []string{f[0], "x", f[2], f[3], "", "/", ""})
		}
	}
	for f := range accountLines(group, 3) {
		members := ""
		if len(f) > 3 {
			members = f[3]
		}
		a.group = append(a.group, []string{f[0], "x", f[2], members})
	}
	return a
}

// accountLines are the lines that have at least n fields, a name and an id.
func accountLines(file string, n int) func(yield func(fields []string) bool) {
	return func(yield func(fields []string) bool) {
		for line := range strings.Lines(file) {
			line = strings.TrimSpace(line)
			fields := strings.Split(line, ":")
			if len(fields) < n || fields[0] == "" || !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' }) {
				continue
			}
			if _, ok := parseID(fields[2]); ok && !yield(fields) {
				return
			}
		}
	}
}

// missing is the name in user that has no line, "" if there is none.
func (a accountFiles) missing(user string) string {
	name, group, _ := strings.Cut(user, ":")
	is := func(name string) func([]string) bool { return func(f []string) bool { return f[0] == name } }
	switch {
	case isName(name) && !slices.ContainsFunc(a.passwd, is(name)):
		return fmt.Sprintf("user %q", name)
	case isName(group) && !slices.ContainsFunc(a.group, is(group)):
		return fmt.Sprintf("group %q", group)
	}
	return ""
}

// bounded returns the files by the keys of their annotations. If one is too
// large, both have only the lines that user needs.
func (a accountFiles) bounded(user string) map[string]string {
	for _, files := range []accountFiles{a, a.needed(user)} {
		texts := map[string]string{passwdAnnotation: join(files.passwd), groupAnnotation: join(files.group)}
		fits := true
		for key, text := range texts {
			fits = fits && len(key)+len(text) <= maxLabel
		}
		if fits {
			return texts
		}
	}
	return nil
}

// needed are the line of user, and those of its group and of the groups that it
// is a member of, with no other members.
func (a accountFiles) needed(user string) accountFiles {
	var n accountFiles
	name, group, _ := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	gid := ""
	for _, f := range a.passwd {
		if f[0] == name || f[2] == name {
			n.passwd = append(n.passwd, f)
			name, gid = f[0], f[3]
			break
		}
	}
	for _, f := range a.group {
		member := slices.Contains(strings.Split(f[3], ","), name)
		if !member && f[0] != group && f[2] != gid {
			continue
		}
		line := []string{f[0], f[1], f[2], ""}
		if member {
			line[3] = name
		}
		n.group = append(n.group, line)
	}
	return n
}

func join(lines [][]string) string {
	var b strings.Builder
	for _, fields := range lines {
		b.WriteString(strings.Join(fields, ":") + "\n")
	}
	return b.String()
}

// wants says whether a layer is looked into.
func (e *encryptor) wants(layer digest.Digest) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.scans[layer]
	return ok
}

// found keeps what a layer that was asked for has.
func (e *encryptor) found(layer digest.Digest, a layerAccounts) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.scans[layer] = a
}
