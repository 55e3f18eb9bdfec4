// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import "net/http"

const (
	maxCookies     = 16
	maxCookieBytes = 4 << 10
)

// cookies are those of one handshake, by name. They go back to the one server
// they came from, whatever their attributes say: a guest's clock may be too
// wrong for expiry times, and load balancers add theirs to keep a session on
// one replica.
type cookies map[string]string

// merge takes over what an answer sets.
func (c cookies) merge(set []*http.Cookie) {
	for _, k := range set {
		switch {
		case k.MaxAge < 0 || k.Value == "":
			delete(c, k.Name)
		case len(k.Name)+len(k.Value) > maxCookieBytes:
		case c[k.Name] != "" || len(c) < maxCookies:
			c[k.Name] = k.Value
		}
	}
}

func (c cookies) set(req *http.Request) {
	for name, value := range c {
		req.AddCookie(&http.Cookie{Name: name, Value: value}) //nolint:gosec // attributes are for servers to set
	}
}
