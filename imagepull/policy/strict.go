// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/coffer-cc/coffer/imagepull/document"
)

const (
	maxDepth    = 16
	maxDocument = document.MaxSize
)

// node is a JSON value that knows its place. encoding/json alone would take
// the last of two equal members, match names in any case and pass over
// unknown ones: a policy means what is written or nothing.
type node struct {
	path    string
	value   any // nil, bool, json.Number or string; not set for the next two
	array   []*node
	members map[string]*node
	order   []string // names of members as they were written
}

// parseJSON reads exactly one JSON value. name is the path of its root.
func parseJSON(b []byte, name string) (*node, error) {
	if len(b) > maxDocument {
		return nil, fmt.Errorf("longer than %d bytes", maxDocument)
	}
	if !utf8.Valid(b) {
		return nil, errors.New("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	n, err := parseNode(dec, name, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON value")
	}
	return n, nil
}

func parseNode(dec *json.Decoder, path string, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: nested deeper than %d", place(path), maxDepth)
	}
	token, err := dec.Token()
	if err != nil {
		return nil, jsonError(path, err)
	}
	n := &node{path: path}
	switch t := token.(type) {
	case json.Delim:
		if t == '[' {
			return n, n.parseArray(dec, depth)
		}
		return n, n.parseObject(dec, depth)
	default:
		n.value = t
		return n, nil
	}
}

func (n *node) parseArray(dec *json.Decoder, depth int) error {
	n.array = []*node{}
	for dec.More() {
		e, err := parseNode(dec, n.path+"["+strconv.Itoa(len(n.array))+"]", depth+1)
		if err != nil {
			return err
		}
		n.array = append(n.array, e)
	}
	return closing(dec, n.path)
}

func (n *node) parseObject(dec *json.Decoder, depth int) error {
	n.members = map[string]*node{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return jsonError(n.path, err)
		}
		key, ok := token.(string)
		if !ok {
			return fmt.Errorf("%s: a member's name is no string", place(n.path))
		}
		path := member(n.path, key)
		if _, twice := n.members[key]; twice {
			return fmt.Errorf("%s: given twice", path)
		}
		if n.members[key], err = parseNode(dec, path, depth+1); err != nil {
			return err
		}
		n.order = append(n.order, key)
	}
	return closing(dec, n.path)
}

func closing(dec *json.Decoder, path string) error {
	if _, err := dec.Token(); err != nil {
		return jsonError(path, err)
	}
	return nil
}

func jsonError(path string, err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("%s: not JSON at byte %d: %w", place(path), syntax.Offset, err)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%s: not JSON: %w", place(path), err)
}

// member is the path of an object's member, in the notation of JavaScript.
func member(path, key string) string {
	if !plain(key) {
		return path + "[" + strconv.Quote(clip(key, 200)) + "]"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func place(path string) string {
	if path == "" {
		return "the document"
	}
	return path
}

// fields reads the members of an object, each once. The first error sticks.
type fields struct {
	n    *node
	used map[string]bool
	err  error
}

func (n *node) fields() *fields {
	f := &fields{n: n, used: map[string]bool{}}
	if n.members == nil {
		f.err = fmt.Errorf("%s: not an object", place(n.path))
	}
	return f
}

// fail keeps the first error, about the member or, where it is "", the object.
func (f *fields) fail(name, format string, args ...any) {
	if f.err == nil {
		path := place(f.n.path)
		if name != "" {
			path = member(f.n.path, name)
		}
		f.err = fmt.Errorf(path+": "+format, args...)
	}
}

// get returns the member, nil if there is none.
func (f *fields) get(name string) *node {
	f.used[name] = true
	return f.n.members[name]
}

// text returns a string member, "" if there is none; one that is there must
// not be empty.
func (f *fields) text(name string) string {
	n := f.get(name)
	if n == nil {
		return ""
	}
	s, ok := n.value.(string)
	if !ok || s == "" {
		f.fail(name, "not a string with something in it")
	}
	return s
}

// texts returns an array of strings, nil if there is none; one that is there
// must not be empty.
func (f *fields) texts(name string) []string {
	n := f.get(name)
	if n == nil {
		return nil
	}
	if len(n.array) == 0 {
		f.fail(name, "not an array with something in it")
	}
	var out []string
	for _, e := range n.array {
		s, ok := e.value.(string)
		if !ok || s == "" {
			f.fail(name, "element %d is not a string with something in it", len(out))
		}
		out = append(out, s)
	}
	return out
}

// end returns the first error, or one for a member that nobody asked for.
func (f *fields) end() error {
	if f.err == nil {
		for _, name := range f.n.order {
			if !f.used[name] {
				f.fail(name, "unknown member")
			}
		}
	}
	return f.err
}

// clip shortens text that came from outside for use in an error.
func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}

// plain reports whether a member's name needs no quotes in a path.
func plain(key string) bool {
	for _, r := range key {
		if r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') {
			return false
		}
	}
	return key != ""
}
