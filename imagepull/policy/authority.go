// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"net/url"
	"slices"
	"strings"

	"github.com/coffer-cc/coffer/imagepull/document"
	"github.com/coffer-cc/coffer/imagepull/policy/sigstore"
)

// publicGoodRoot is the value of "trustedRoot" for the root that is built in.
const publicGoodRoot = "public-good"

// fulcio trusts certificates that live for minutes. Exactly one of ca, root
// and publicGood says whose.
type fulcio struct {
	ca         []material
	root       []material // a trusted_root.json
	publicGood bool
	identity   sigstore.Identity
}

// parseFulcio reads containers/image's members, and of coffer's own
// "trustedRoot", "trustedRootPath", "trustedRootData", "subjectURI" and
// "subjectURIPrefix".
func parseFulcio(parent *fields, n *node) *fulcio {
	f := n.fields()
	r := &fulcio{}
	r.ca = parseMaterial(f, "ca", isCertificates, "Path", "Data")
	r.root = parseMaterial(f, "trustedRoot", func(b []byte) error {
		_, err := sigstore.ParseRoot(b)
		return err
	}, "Path", "Data")
	switch root := f.text("trustedRoot"); root {
	case "":
	case publicGoodRoot:
		r.publicGood = true
	default:
		f.fail("trustedRoot", "%q is not built in: use %q, or trustedRootPath or trustedRootData", clip(root, 100), publicGoodRoot)
	}
	if count(len(r.ca) > 0, len(r.root) > 0, r.publicGood) != 1 {
		f.fail("", "give exactly one of caPath, caData, trustedRoot, trustedRootPath and trustedRootData")
	}
	id := sigstore.Identity{
		Issuer: f.text("oidcIssuer"), Email: f.text("subjectEmail"),
		URI: f.text("subjectURI"), URIPrefix: f.text("subjectURIPrefix"),
	}
	if id.Issuer == "" {
		f.fail("oidcIssuer", "missing")
	}
	if count(id.Email != "", id.URI != "", id.URIPrefix != "") != 1 {
		f.fail("", "give exactly one of subjectEmail, subjectURI and subjectURIPrefix")
	}
	if id.URIPrefix != "" && !endsInPath(id.URIPrefix) {
		f.fail("subjectURIPrefix", "a prefix has a scheme, a whole host and a path that ends in a slash or goes on behind an @")
	}
	r.identity = id
	if err := f.end(); err != nil && parent.err == nil {
		parent.err = err
	}
	return r
}

// endsInPath guards against a prefix that other hosts, or other owners and
// repositories there, begin with, too.
func endsInPath(prefix string) bool {
	u, err := url.Parse(prefix)
	return err == nil && u.Scheme != "" && u.Host != "" && (strings.HasSuffix(u.Path, "/") || strings.Contains(u.Path, "@"))
}

func count(conditions ...bool) int {
	n := 0
	for _, is := range conditions {
		if is {
			n++
		}
	}
	return n
}

func isCertificates(b []byte) error {
	_, err := sigstore.ParseCertificates(b)
	return err
}

// load sets what t trusts. An authority of the policy's own comes without a
// certificate log; a trusted root brings its own, and then a promise of one is
// required.
func (r *fulcio) load(ctx context.Context, docs *document.Reader, t *sigstore.Trust) error {
	t.Fulcio = &sigstore.Fulcio{Identity: r.identity}
	if len(r.ca) > 0 {
		chains, err := loadAll(ctx, docs, r.ca, sigstore.ParseCertificates)
		t.Fulcio.Authorities = []sigstore.Authority{{Roots: slices.Concat(chains...)}}
		return err
	}
	root, err := r.trustedRoot(ctx, docs)
	if err != nil {
		return err
	}
	t.Fulcio.Authorities = root.Fulcio
	t.Fulcio.CT = append([]sigstore.Log{}, root.CT...) // never nil: a promise is required
	t.Rekor, t.Timestamp = root.Rekor, root.Timestamp
	return nil
}

func (r *fulcio) trustedRoot(ctx context.Context, docs *document.Reader) (*sigstore.Root, error) {
	if r.publicGood {
		return sigstore.PublicGood()
	}
	roots, err := loadAll(ctx, docs, r.root, sigstore.ParseRoot)
	if err != nil {
		return nil, err
	}
	return roots[0], nil
}

// pki trusts certificates that live long, under an authority of the key
// owner's own.
type pki struct {
	roots, intermediates []material
	email, hostname      string
}

func parsePKI(parent *fields, n *node) *pki {
	f := n.fields()
	r := &pki{
		roots:         parseMaterial(f, "caRoots", isCertificates, "Path", "Data"),
		intermediates: parseMaterial(f, "caIntermediates", isCertificates, "Path", "Data"),
		email:         f.text("subjectEmail"),
		hostname:      f.text("subjectHostname"),
	}
	if len(r.roots) == 0 {
		f.fail("", "no root: give caRootsPath or caRootsData")
	}
	if r.email == "" && r.hostname == "" {
		f.fail("", "no subject: give subjectEmail or subjectHostname")
	}
	if err := f.end(); err != nil && parent.err == nil {
		parent.err = err
	}
	return r
}

func (r *pki) load(ctx context.Context, docs *document.Reader) (*sigstore.PKI, error) {
	roots, err := loadAll(ctx, docs, r.roots, sigstore.ParseCertificates)
	if err != nil {
		return nil, err
	}
	intermediates, err := loadAll(ctx, docs, r.intermediates, sigstore.ParseCertificates)
	if err != nil {
		return nil, err
	}
	return &sigstore.PKI{
		Roots: slices.Concat(roots...), Intermediates: slices.Concat(intermediates...),
		Email: r.email, Hostname: r.hostname,
	}, nil
}
