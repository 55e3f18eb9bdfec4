// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"embed"
	"fmt"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/containerd/errdefs"
)

// Stanza is the part of containerd's configuration that makes it use the
// snapshotter: as a file of its own, imported by containerd's main file.
type Stanza struct {
	// Name of the snapshotter in containerd. Empty means Name; a node with both
	// routes gives the second another.
	Name string
	// Address is the path of the snapshotter's unix socket.
	Address string
	// Root is the snapshotter's folder; containerd accounts image storage
	// by its file system.
	Root string
	// Containerd is the release, such as "2.4". Empty means DefaultContainerd.
	Containerd string
	// Route is how layers get into the TEE. Empty means RouteLocal.
	Route string
	// Handlers are the runtime handlers whose pods use the snapshotter. Empty
	// means the one that the route usually has.
	Handlers []Handler
	// Unpack are the other snapshotters that images are pulled into. Empty means
	// overlayfs.
	Unpack []string
	// SystemdCgroup makes runc use systemd for cgroups, as kubelet does on
	// most machines. False leaves it to the main file.
	SystemdCgroup bool
}

// Handler is a runtime handler of CRI, which a RuntimeClass names.
type Handler struct {
	// Name of the handler.
	Name string
	// Type is containerd's runtime_type. Empty is a handler that another file
	// defines: it only gets its snapshotter here.
	Type string
}

const (
	// Name is the name of the snapshotter, and of the runtime handler that
	// uses it in the local route, in containerd.
	Name = "coffer"
	// DefaultContainerd is the containerd release of a Stanza without one.
	DefaultContainerd = "2.4"
	// RouteLocal is the route in which the machine is itself the TEE.
	RouteLocal = "local"
	// RouteGuest is the route in which containers run in Kata's guests, each a TEE.
	RouteGuest = "guest"

	runcType = "io.containerd.runc.v2"
	kataType = "io.containerd.kata.v2"
)

//go:embed containerd.toml.tmpl containerd17.toml.tmpl
var templates embed.FS

// TOML returns the stanza as a TOML file. For containerd 1.7 it lacks what Main
// returns.
func (s Stanza) TOML() ([]byte, error) { return s.execute("file") }

// Main returns the lines that have to stand in containerd's main file, since
// containerd 1.7 takes the whole section of a plugin from the last file that has
// it. Newer releases merge: for them there are none, and Main is an error.
func (s Stanza) Main() ([]byte, error) {
	if r, err := parseRelease(s.Containerd); err == nil && r.config() > 2 {
		return nil, fmt.Errorf("containerd %s merges its files: everything is in the drop-in: %w", s.Containerd, errdefs.ErrInvalidArgument)
	}
	return s.execute("main")
}

func (s Stanza) execute(part string) ([]byte, error) {
	release, err := parseRelease(s.Containerd)
	if err != nil {
		return nil, err
	}
	if s, err = s.complete(); err != nil {
		return nil, err
	}
	tmpl, err := template.New("").Funcs(template.FuncMap{"toml": strconv.Quote, "isRunc": isRunc, "isKata": isKata}).ParseFS(templates, "*.tmpl")
	if err != nil {
		return nil, fmt.Errorf("containerd stanza: %w", err)
	}
	name := "containerd.toml.tmpl"
	if release.config() == 2 {
		name = "containerd17.toml.tmpl"
		if part == "main" {
			name = "main"
		}
	}
	var out bytes.Buffer
	err = tmpl.ExecuteTemplate(&out, name, struct {
		Stanza
		Version  int
		Platform string
		EROFS    bool // containerd's own list has it, in this release
	}{s, release.config(), "linux/" + runtime.GOARCH, release.minor >= 3 && len(s.Unpack) == 1 && s.Unpack[0] == "overlayfs"})
	if err != nil {
		return nil, fmt.Errorf("containerd stanza: %w", err)
	}
	return out.Bytes(), nil
}

// complete checks the fields and fills those that are empty.
func (s Stanza) complete() (Stanza, error) {
	if s.Name == "" {
		s.Name = Name
	}
	if err := checkName(s.Name); err != nil {
		return s, err
	}
	switch s.Route {
	case "", RouteLocal:
		if len(s.Handlers) == 0 {
			s.Handlers = []Handler{{Name: s.Name, Type: runcType}}
		}
	case RouteGuest:
		if len(s.Handlers) == 0 {
			s.Handlers = []Handler{{Name: "kata", Type: kataType}}
		}
	default:
		return s, fmt.Errorf("route %q is unknown: use %q or %q: %w", s.Route, RouteLocal, RouteGuest, errdefs.ErrInvalidArgument)
	}
	for _, h := range s.Handlers {
		if !word().MatchString(h.Name) || h.Type != "" && !word().MatchString(h.Type) {
			return s, fmt.Errorf("runtime handler %q with type %q: use NAME or NAME=TYPE of letters, digits, dots, - and _: %w", h.Name, h.Type, errdefs.ErrInvalidArgument)
		}
	}
	if len(s.Unpack) == 0 {
		s.Unpack = []string{"overlayfs"}
	}
	s.Unpack = slices.DeleteFunc(slices.Clone(s.Unpack), func(u string) bool { return u == s.Name })
	for _, path := range []string{s.Address, s.Root} {
		if !filepath.IsAbs(path) {
			return s, fmt.Errorf("path %q for containerd must be absolute: %w", path, errdefs.ErrInvalidArgument)
		}
	}
	return s, nil
}

// checkName refuses names that clients of containerd take for another
// snapshotter's.
func checkName(name string) error {
	if !word().MatchString(name) || strings.Contains(name, ".") {
		return fmt.Errorf("snapshotter name %q: use letters, digits, - and _: %w", name, errdefs.ErrInvalidArgument)
	}
	for _, taken := range []string{"overlaybd", "stargz", "nydus", "soci", "cvmfs-snapshotter"} {
		if strings.Contains(name, taken) {
			return fmt.Errorf("snapshotter name %q contains %q, which nerdctl takes for that snapshotter: choose another: %w", name, taken, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func word() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`) }

// ParseHandler parses NAME or NAME=TYPE.
func ParseHandler(s string) Handler {
	name, runtimeType, _ := strings.Cut(s, "=")
	return Handler{Name: name, Type: runtimeType}
}

func isRunc(h Handler) bool { return strings.Contains(h.Type, ".runc.") }
func isKata(h Handler) bool { return strings.Contains(h.Type, ".kata") }

type release struct{ major, minor int }

// config is the version of containerd's configuration format that a release
// reads without migration.
func (r release) config() int {
	switch {
	case r.major == 1:
		return 2
	case r.minor <= 2:
		return 3
	}
	return 4
}

func parseRelease(s string) (release, error) {
	if s == "" {
		s = DefaultContainerd
	}
	major, rest, _ := strings.Cut(strings.TrimPrefix(s, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, aerr := strconv.Atoi(major)
	b, berr := strconv.Atoi(minor)
	r := release{a, b}
	switch {
	case aerr != nil || berr != nil:
		return r, fmt.Errorf("containerd release %q is not MAJOR.MINOR: %w", s, errdefs.ErrInvalidArgument)
	case a == 1 && b == 7, a == 2:
		return r, nil
	}
	return r, fmt.Errorf("containerd %s is not supported: use 1.7 or 2.0 and newer: %w", s, errdefs.ErrInvalidArgument)
}
