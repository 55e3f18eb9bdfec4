// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// maxValue is how much of a value an explanation shows, in bytes.
const maxValue = 256

// refCall is the builtin whose result is shown as "reference value NAME".
const refCall = "query_reference_value"

// operand is one side of a comparison, as a reader of the policy knows it.
type operand struct {
	label string    // what it is; empty for a constant
	value ast.Value // nil when undefined
	ref   string    // name, when it is a reference value
}

// text shows label and value, or whichever there is.
func (o operand) text() string {
	switch {
	case o.label == "":
		return show(o.value)
	case o.value == nil:
		return o.label
	default:
		return o.label + " " + show(o.value)
	}
}

func (o operand) missingRef() bool {
	return o.ref != "" && (o.value == nil || o.value.Compare(ast.NullValue) == 0)
}

// scene resolves the terms of one body to operands.
type scene struct {
	defs   map[ast.Var]*ast.Term // generated variable → what it stands for
	calls  map[ast.Var]*ast.Expr // generated variable → the call that set it
	locals *ast.ValueMap
	names  map[ast.Var]topdown.VarMetadata
	input  ast.Value
	data   map[string]any
	lookup func(name string) ast.Value
	// open holds the variables being resolved: a body may define them in a
	// circle, as "some k, v in x" with "k == v" does.
	open map[ast.Var]bool
}

func newScene(body ast.Body, locals *ast.ValueMap, names map[ast.Var]topdown.VarMetadata, q question) *scene {
	s := &scene{
		defs: map[ast.Var]*ast.Term{}, calls: map[ast.Var]*ast.Expr{},
		locals: locals, names: names, input: q.input, data: q.data,
		open: map[ast.Var]bool{},
	}
	for _, expr := range body {
		if expr.IsEquality() && !expr.Negated {
			v, ok := expr.Operand(0).Value.(ast.Var)
			if _, known := s.defs[v]; ok && !known {
				s.defs[v] = expr.Operand(1)
			}
			continue
		}
		if !expr.IsCall() {
			continue
		}
		ops := expr.Operands()
		if len(ops) == 0 {
			continue
		}
		if v, ok := ops[len(ops)-1].Value.(ast.Var); ok && hasOutput(expr) {
			s.calls[v] = expr
		}
	}
	return s
}

// hasOutput says whether the last operand of a call receives its result.
func hasOutput(expr *ast.Expr) bool {
	name := expr.Operator().String()
	if name == refCall {
		return len(expr.Operands()) == 2
	}
	b, ok := ast.BuiltinMap[name]
	return ok && len(expr.Operands()) == b.Decl.Arity()+1
}

// operand describes a term.
func (s *scene) operand(t *ast.Term) operand {
	switch v := t.Value.(type) {
	case ast.Var:
		return s.variable(v)
	case ast.Ref:
		return s.reference(v)
	default:
		return operand{value: t.Value}
	}
}

func (s *scene) variable(v ast.Var) operand {
	if s.open[v] || len(s.open) >= maxDepth {
		return operand{label: s.name(v), value: s.local(v)}
	}
	s.open[v] = true
	defer delete(s.open, v)
	if call, ok := s.calls[v]; ok {
		return s.call(v, call)
	}
	if def, ok := s.defs[v]; ok && !def.Equal(ast.NewTerm(v)) {
		o := s.operand(def)
		if got := s.local(v); got != nil {
			o.value = got
		}
		return o
	}
	return operand{label: s.name(v), value: s.local(v)}
}

func (s *scene) call(v ast.Var, call *ast.Expr) operand {
	o := operand{label: source(call.Location), value: s.local(v)}
	if call.Operator().String() != refCall {
		return o
	}
	name, ok := s.operand(call.Operand(0)).value.(ast.String)
	if !ok {
		return o
	}
	o.ref, o.label = string(name), "reference value "+string(name)
	if o.value == nil && s.lookup != nil {
		o.value = s.lookup(o.ref)
	}
	return o
}

func (s *scene) reference(r ast.Ref) operand {
	head, _ := r[0].Value.(ast.Var)
	path := s.path(r[1:])
	switch head {
	case "input":
		label := path
		if parts := strings.SplitN(path, ".", 2); len(parts) == 2 && parts[0] != "submods" {
			label = parts[1]
		}
		return operand{label: label, value: s.find(s.input, r[1:])}
	case "data":
		o := operand{label: path}
		if v, err := ast.InterfaceToValue(s.data); err == nil {
			o.value = s.find(v, r[1:])
		}
		return o
	default:
		base := s.variable(head)
		return operand{label: base.label + "." + path, value: s.find(base.value, r[1:])}
	}
}

// path renders the steps of a reference with the values they had.
func (s *scene) path(steps ast.Ref) string {
	parts := make([]string, 0, len(steps))
	for _, step := range steps {
		o := s.operand(step)
		if o.value != nil {
			parts = append(parts, show(o.value))
		} else {
			parts = append(parts, o.label)
		}
	}
	return strings.Join(parts, ".")
}

// find walks from a value along the steps of a reference; nil if there is no
// such thing.
func (s *scene) find(at ast.Value, steps ast.Ref) ast.Value {
	for _, step := range steps {
		key := s.operand(step).value
		if at == nil || key == nil {
			return nil
		}
		next, err := at.Find(ast.Ref{ast.NewTerm(key)})
		if err != nil {
			return nil
		}
		at = next
	}
	return at
}

func (s *scene) local(v ast.Var) ast.Value {
	if s.locals == nil {
		return nil
	}
	got := s.locals.Get(v)
	if got == nil || !got.IsGround() {
		return nil
	}
	return got
}

func (s *scene) name(v ast.Var) string {
	if m, ok := s.names[v]; ok && m.Name != "" {
		return string(m.Name)
	}
	if v.IsGenerated() || strings.HasPrefix(string(v), "__local") {
		return "value"
	}
	return string(v)
}

// show renders a value for a human: strings without quotes, the rest as
// JSON, all of it cut to maxValue bytes.
func show(v ast.Value) string {
	var text string
	switch v := v.(type) {
	case nil:
		return "undefined"
	case ast.String:
		text = string(v)
	case *ast.Array:
		parts := []string{}
		v.Foreach(func(t *ast.Term) { parts = append(parts, show(t.Value)) })
		text = "[" + strings.Join(parts, ", ") + "]"
	default:
		text = asJSON(v)
	}
	if len(text) > maxValue {
		text = strings.ToValidUTF8(text[:maxValue], "") + "…"
	}
	return text
}

func asJSON(v ast.Value) string {
	x, err := ast.JSON(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	b, err := json.Marshal(x)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

// source is the policy text at a location, on one line.
func source(l *ast.Location) string {
	if l == nil {
		return ""
	}
	text := strings.Join(strings.Fields(string(l.Text)), " ")
	if len(text) > maxValue {
		text = strings.ToValidUTF8(text[:maxValue], "") + "…"
	}
	return text
}
