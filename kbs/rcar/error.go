// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package rcar

import (
	"strings"
	"unicode"
)

// ErrorTypePrefix begins the Type of every Error; the rest is the variant.
const ErrorTypePrefix = "https://github.com/confidential-containers/kbs/errors/"

const maxError = 64 << 10

// Error is the body of every answer that is not a success. Reason is an
// extension: services that do not know it leave it out, and clients that do
// not know it ignore it.
type Error struct {
	Type   string  `json:"type"`
	Detail string  `json:"detail"`
	Reason *Reason `json:"reason,omitempty"`
}

// Variant returns the last part of Type, such as "PolicyDeny", or "" when Type
// is not one of the protocol's.
func (e Error) Variant() string {
	v, ok := strings.CutPrefix(e.Type, ErrorTypePrefix)
	if !ok {
		return ""
	}
	return v
}

// ParseError parses an error body. Proxies answer with bodies of their own, so
// a caller must be ready for an error here.
func ParseError(b []byte) (Error, error) {
	var e Error
	if err := parse("error", b, maxError, &e); err != nil {
		return Error{}, err
	}
	return e, nil
}

// Reason says why a service refused, in terms that its owner can act on. It
// must hold nothing secret: it is shown to whoever asked.
type Reason struct {
	Policy   string `json:"policy,omitempty"`
	Rule     string `json:"rule,omitempty"`
	Expected string `json:"expected,omitempty"`
	Got      string `json:"got,omitempty"`
	NextStep string `json:"next_step,omitempty"`
	TraceID  string `json:"trace_id,omitempty"`
}

// String returns the reason on one line:
// "policy P, rule R: expected E, got G; next: N (trace T)". Members that are
// empty are left out. A nil Reason is "".
func (r *Reason) String() string {
	if r == nil {
		return ""
	}
	var where, what, parts []string
	if r.Policy != "" {
		where = append(where, "policy "+oneLine(r.Policy))
	}
	if r.Rule != "" {
		where = append(where, "rule "+oneLine(r.Rule))
	}
	if r.Expected != "" {
		what = append(what, "expected "+oneLine(r.Expected))
	}
	if r.Got != "" {
		what = append(what, "got "+oneLine(r.Got))
	}
	if len(where) > 0 {
		parts = append(parts, strings.Join(where, ", "))
	}
	if len(what) > 0 {
		parts = append(parts, strings.Join(what, ", "))
	}
	s := strings.Join(parts, ": ")
	if r.NextStep != "" {
		if s != "" {
			s += "; "
		}
		s += "next: " + oneLine(r.NextStep)
	}
	if r.TraceID != "" {
		s = strings.TrimSpace(s + " (trace " + oneLine(r.TraceID) + ")")
	}
	return s
}

// oneLine keeps text from the other side from forging log lines.
func oneLine(s string) string {
	s = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, s)
	const limit = 1024
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return strings.TrimSpace(s)
}
