// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// transportDocker is the only transport of policy.json that is about images in
// registries. The others are checked and then not used.
const transportDocker = "docker"

// Policy is a parsed policy.json. It is immutable and safe for concurrent use.
type Policy struct {
	document digest.Digest            // of what it was parsed from
	fallback []requirement            // "default"
	scopes   map[string][]requirement // of the docker transport
}

// Parse reads a containers policy.json. "transports" may be left out. Unknown
// members and requirement types, members given twice, empty lists and scopes
// that can match no image are InvalidArgument errors that name the place. The
// requirements known beyond containers' own are described in the protocols
// page: {"type":"digests"}, and members of "fulcio" for trusted roots.
func Parse(b []byte) (*Policy, error) {
	p, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("image policy: policy.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

func parse(b []byte) (*Policy, error) {
	root, err := parseJSON(b, "")
	if err != nil {
		return nil, err
	}
	p := &Policy{document: digest.FromBytes(b), scopes: map[string][]requirement{}}
	f := root.fields()
	if n := f.get("default"); n != nil {
		if p.fallback, err = parseRequirements(n); err != nil {
			return nil, err
		}
	} else {
		f.fail("default", "missing: say what holds for images that no scope names")
	}
	if n := f.get("transports"); n != nil {
		if err := p.parseTransports(n); err != nil {
			return nil, err
		}
	}
	return p, f.end()
}

func (p *Policy) parseTransports(n *node) error {
	transports := n.fields()
	for _, transport := range n.order {
		scopes := transports.get(transport)
		f := scopes.fields()
		for _, scope := range scopes.order {
			list := f.get(scope)
			if transport == transportDocker {
				if err := checkScope(scope); err != nil {
					return fmt.Errorf("%s: %w", list.path, err)
				}
			}
			requirements, err := parseRequirements(list)
			if err != nil {
				return err
			}
			if transport == transportDocker {
				scope = withoutHTTPS(scope)
				if p.scopes[scope] != nil {
					return fmt.Errorf("%s: given twice, with the port of HTTPS and without", list.path)
				}
				p.scopes[scope] = requirements
			}
		}
		if err := f.end(); err != nil {
			return err
		}
	}
	return transports.end()
}

func parseRequirements(n *node) ([]requirement, error) {
	if n.array == nil {
		return nil, fmt.Errorf("%s: not an array of requirements", n.path)
	}
	if len(n.array) == 0 {
		return nil, fmt.Errorf(`%s: no requirement: write [{"type":"reject"}] or [{"type":"insecureAcceptAnything"}]`, n.path)
	}
	out := make([]requirement, len(n.array))
	for i, e := range n.array {
		var err error
		if out[i], err = parseRequirement(e); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// parseRequirement reads one requirement by its type.
func parseRequirement(n *node) (requirement, error) {
	f := n.fields()
	var r requirement
	switch kind := f.text("type"); kind {
	case "insecureAcceptAnything":
		r = acceptAnything{}
	case "reject":
		r = reject{}
	case "signedBy":
		r = parseSignedBy(f)
	case "sigstoreSigned":
		r = parseSigstoreSigned(f)
	case "digests":
		r = parseDigests(f)
	case "":
		f.fail("type", "missing")
	default:
		f.fail("type", "unknown requirement %q: use insecureAcceptAnything, reject, signedBy, sigstoreSigned or digests", clip(kind, 100))
	}
	return r, f.end()
}

// Policy returns p itself: a policy that does not change is its own source.
func (p *Policy) Policy(context.Context) (*Policy, error) { return p, nil }

// find returns the requirements for an image and the scope they stand under.
func (p *Policy) find(n name) (scope string, _ []requirement) {
	for _, scope := range n.scopes() {
		if list, ok := p.scopes[scope]; ok {
			if scope == "" {
				scope = `""`
			}
			return scope, list
		}
	}
	return "default", p.fallback
}

// checkScope refuses what no image's name can match, which would else look
// like protection.
func checkScope(s string) error {
	if s == "" {
		return nil
	}
	if domain, ok := strings.CutPrefix(s, "*."); ok {
		if strings.ContainsAny(domain, "/@:") || !isPrefix("x."+domain) {
			return fmt.Errorf("a wildcard scope is *. and a domain in lower case, without port or path")
		}
		return nil
	}
	host, _, _ := strings.Cut(s, "/")
	switch {
	case strings.Contains(s, "://"), strings.ContainsAny(s, "* \t\n\"\\"):
		return errNoScope
	case strings.HasSuffix(s, "/"), strings.HasPrefix(s, "/"), strings.Contains(s, "//"):
		return fmt.Errorf("a scope neither begins nor ends with a slash")
	case !strings.ContainsAny(host, ".:") && host != "localhost":
		return fmt.Errorf("no image's full name begins with %q: Docker Hub's images are docker.io/library/… or docker.io/…", host)
	}
	full, err := fullScope(s)
	if err == nil && full != s {
		err = fmt.Errorf("no image's full name begins like this: write %q", full)
	}
	return err
}

var errNoScope = errors.New("not a scope: write host[:port][/namespace…][/repository][:tag or @digest], *.domain or the empty string")

// fullScope is a scope as it stands in images' full names.
func fullScope(s string) (string, error) {
	if n, err := parseName(s); err == nil && !n.bare() && strings.Contains(s, "/") {
		return n.String(), nil
	}
	const below = "/x/x" // whatever s is, this makes it a repository
	n, err := parseName(s + below)
	if err != nil || !n.bare() {
		return "", errNoScope
	}
	return strings.TrimSuffix(n.repository, below), nil
}
