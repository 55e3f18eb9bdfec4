// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
)

// allowed asks for the login and answers 401 itself where it is missing.
func (r *Registry) allowed(w http.ResponseWriter, req *http.Request) bool {
	r.mu.Lock()
	login := r.login
	r.mu.Unlock()
	switch {
	case login == nil:
		return true
	case login.Bearer:
		if req.Header.Get("Authorization") == "Bearer "+login.token() {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+r.URL()+`/token",service="imagetest"`)
	default:
		if login.basic(req) {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="imagetest"`)
	}
	fail(w, http.StatusUnauthorized)
	return false
}

// token is the token server: the login by basic authentication gives a token.
func (r *Registry) token(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	login := r.login
	r.mu.Unlock()
	if login == nil || !login.basic(req) {
		fail(w, http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": login.token(), "expires_in": 300})
}

func (l *Login) basic(req *http.Request) bool {
	user, password, ok := req.BasicAuth()
	return ok && user == l.User && password == l.Password
}

func (l *Login) token() string {
	sum := sha256.Sum256([]byte(l.User + ":" + l.Password))
	return hex.EncodeToString(sum[:])
}
