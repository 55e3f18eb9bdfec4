// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// The "type" of a signed payload.
const (
	payloadSimple = "atomic container signature"
	payloadCosign = "cosign container image signature"
)

// payload is what a simple signature, or cosign's first form, says.
type payload struct {
	digest    digest.Digest
	reference string
}

// parsePayload reads the JSON that was signed, as strictly as containers/image
// does: every critical member is known, none is missing, none comes twice.
// Optional ones are free but for their form.
func parsePayload(b []byte, kind string) (payload, error) {
	var p payload
	root, err := parseJSON(b, "payload")
	if err != nil {
		return p, err
	}
	f := root.fields()
	critical, optional := f.get("critical"), f.get("optional")
	if critical == nil || optional == nil {
		f.fail("", "critical or optional is missing")
	}
	if err := f.end(); err != nil {
		return p, err
	}
	// cosign writes null where there is nothing; simple signing may not.
	if kind != payloadCosign || optional.members != nil || optional.array != nil || optional.value != nil {
		if err := checkOptional(optional); err != nil {
			return p, err
		}
	}
	c := critical.fields()
	if got := c.text("type"); got != kind {
		c.fail("type", "%q instead of %q", clip(got, 100), kind)
	}
	d := digest.Digest(onlyText(c, "image", "docker-manifest-digest"))
	p.reference = onlyText(c, "identity", "docker-reference")
	if err := c.end(); err != nil {
		return p, err
	}
	if err := d.Validate(); err != nil {
		return p, fmt.Errorf("payload.critical.image: %q is not a digest", clip(string(d), 100))
	}
	p.digest = d
	return p, nil
}

// onlyText reads a member that is an object with one string in it.
func onlyText(f *fields, name, inner string) string {
	n := f.get(name)
	if n == nil {
		f.fail(name, "missing")
		return ""
	}
	g := n.fields()
	s := g.text(inner)
	if s == "" {
		g.fail(inner, "missing")
	}
	if err := g.end(); err != nil && f.err == nil {
		f.err = err
	}
	return s
}

func checkOptional(n *node) error {
	f := n.fields()
	if f.err != nil {
		return f.err
	}
	if c := f.get("creator"); c != nil {
		if _, ok := c.value.(string); !ok {
			f.fail("creator", "not a string")
		}
	}
	if t := f.get("timestamp"); t != nil {
		number, ok := t.value.(json.Number)
		if v, err := number.Float64(); !ok || err != nil || v != float64(int64(v)) {
			f.fail("timestamp", "not an integer")
		}
	}
	return f.err // other members are the signer's own
}
