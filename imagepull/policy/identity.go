// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"strings"
)

// The types of "signedIdentity".
const (
	matchExact               = "matchExact"
	matchRepoDigestOrExact   = "matchRepoDigestOrExact"
	matchRepository          = "matchRepository"
	exactReference           = "exactReference"
	exactRepository          = "exactRepository"
	remapIdentity            = "remapIdentity"
	anyIdentity              = "anyIdentity" // coffer's own, for sigstoreSigned
	defaultIdentity          = matchRepoDigestOrExact
	nextSignedIdentity       = "sign the image under the name it is pulled by, or set signedIdentity"
	nextSignedIdentityBundle = `where the digest alone is enough, set signedIdentity to {"type":"anyIdentity"}`
)

// identity decides whether a name inside a signature is the image's.
type identity struct {
	kind string
	// fixed is the name of exactReference and exactRepository.
	fixed name
	// prefix and signedPrefix are remapIdentity's.
	prefix, signedPrefix string
}

// parseIdentity reads "signedIdentity"; nil is the default.
func parseIdentity(f *fields, mayBeAny bool) identity {
	n := f.get("signedIdentity")
	if n == nil {
		return identity{kind: defaultIdentity}
	}
	g := n.fields()
	id := identity{kind: g.text("type")}
	switch id.kind {
	case matchExact, matchRepoDigestOrExact, matchRepository:
	case exactReference:
		id.fixed = fixedName(g, "dockerReference")
		if id.fixed.bare() {
			g.fail("dockerReference", "a reference with tag or digest is needed")
		}
	case exactRepository:
		id.fixed = fixedName(g, "dockerRepository")
		if !id.fixed.bare() {
			g.fail("dockerRepository", "a repository has neither tag nor digest")
		}
	case remapIdentity:
		id.prefix, id.signedPrefix = g.text("prefix"), g.text("signedPrefix")
		for member, p := range map[string]string{"prefix": id.prefix, "signedPrefix": id.signedPrefix} {
			if !isPrefix(p) {
				g.fail(member, "not a host, namespace or repository without tag and digest")
			}
		}
	case anyIdentity:
		if !mayBeAny {
			g.fail("type", "anyIdentity is for sigstoreSigned: simple signing always names the image")
		}
	case "":
		g.fail("type", "missing")
	default:
		g.fail("type", "unknown %q", clip(id.kind, 100))
	}
	if err := g.end(); err != nil && f.err == nil {
		f.err = err
	}
	return id
}

func fixedName(f *fields, member string) name {
	n, err := parseName(f.text(member))
	if err != nil {
		f.fail(member, "%v", err)
	}
	return n
}

// isPrefix accepts a full host, or a repository or namespace in its full form.
func isPrefix(s string) bool {
	host, _, _ := strings.Cut(s, "/")
	if !strings.ContainsAny(host, ".:") && host != "localhost" {
		return false
	}
	const below = "/x/x" // whatever s is, this makes it a repository
	n, err := parseName(s + below)
	return err == nil && n.bare() && n.repository == s+below
}

// check reports whether a signature that says it is of signed may stand for
// the image. signed is "" where the signature names none.
func (id identity) check(image name, signed string) error {
	if id.kind == anyIdentity {
		return nil
	}
	if signed == "" {
		return errNamesNone
	}
	s, err := parseName(signed)
	if err != nil {
		return fmt.Errorf("the name in the signature: %w", err)
	}
	var good bool
	switch id.kind {
	case matchExact:
		good = image.equal(s)
	case matchRepoDigestOrExact:
		good = repoDigestOrExact(image, s)
	case matchRepository:
		good = image.repository == s.repository
	case exactReference:
		good = id.fixed.String() == s.String()
	case exactRepository:
		good = id.fixed.repository == s.repository
	case remapIdentity:
		good = repoDigestOrExact(id.remap(image), s)
	}
	if !good && s.bare() && image.repository == s.repository {
		return fmt.Errorf("it is for %q without tag and digest, as cosign signs: %s does not accept that, matchRepository does", clip(signed, 200), id.kind)
	}
	if !good {
		return fmt.Errorf("it is for %q, which %s does not accept", clip(signed, 200), id.kind)
	}
	return nil
}

var errNamesNone = errors.New("it names no image")

// equal compares whole references. One with both tag and digest is also named
// by the tag, since the signature holds for one digest only, and that is
// checked elsewhere.
func (n name) equal(signed name) bool {
	if signed.bare() || n.bare() || signed.repository != n.repository {
		return false
	}
	return signed.String() == n.String() ||
		n.tag != "" && n.digest != "" && signed.tag == n.tag && signed.digest == ""
}

// repoDigestOrExact is the default rule: an image by digest needs the same
// repository and any tag, an image by tag needs that tag.
func repoDigestOrExact(image, signed name) bool {
	if image.tag == "" && image.digest != "" {
		return !signed.bare() && signed.repository == image.repository
	}
	return image.equal(signed)
}

// remap replaces the prefix, where the image's repository has it as whole
// path components.
func (id identity) remap(image name) name {
	rest, ok := strings.CutPrefix(image.repository, id.prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return image
	}
	n, err := parseName(id.signedPrefix + rest)
	if err != nil || n.repository != id.signedPrefix+rest {
		return name{} // nothing equals it
	}
	n.tag, n.digest = image.tag, image.digest
	return n
}
