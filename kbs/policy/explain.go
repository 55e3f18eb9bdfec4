// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
)

// failure is one condition of a policy that was not met.
type failure struct {
	rule     string // file:line and the expression
	expected string
	got      string                     // with values
	sentence string                     // expected and got in one
	wants    map[string]json.RawMessage // reference values that would meet it
}

// explainer holds one traced evaluation.
type explainer struct {
	trace *tracer
	q     question
	refs  func(name string) ast.Value
	prog  *program
	id    string
}

// explain evaluates p again and watches.
func (e *Engine) explain(ctx context.Context, id string, p *program, q question) (*explainer, error) {
	t := newTracer()
	_, err := e.eval(ctx, p, q,
		rego.EvalQueryTracer(t), rego.EvalRuleIndexing(false), rego.EvalEarlyExit(false))
	if err != nil {
		return nil, err
	}
	lookup := func(name string) ast.Value {
		v, err := e.refs.ReferenceValue(ctx, name)
		if err != nil {
			return ast.NullValue
		}
		value, err := ast.InterfaceToValue(v)
		if err != nil {
			return ast.NullValue
		}
		return value
	}
	return &explainer{trace: t, q: q, refs: lookup, prog: p, id: id}, nil
}

// why is explainer.why, which must not change a verdict whatever a policy
// looks like.
func (e *Engine) why(ctx context.Context, x *explainer, rule string) (f failure, ok bool) {
	defer func() {
		if v := recover(); v != nil {
			e.log.ErrorContext(ctx, "panic while explaining", "policy", x.id, "rule", rule, "panic", v)
			f, ok = failure{}, false
		}
	}()
	return x.why(rule)
}

// why says what kept the rule of that name from its best outcome.
func (x *explainer) why(rule string) (failure, bool) {
	spans := x.trace.rule(rule)
	if s := closest(spans); s != nil {
		s = x.trace.deepest(s)
		return x.describe(s, s.failed), true
	}
	for _, s := range spans {
		if f, ok := x.falseHead(s); ok {
			return f, true
		}
	}
	for _, r := range x.prog.module.Rules {
		if ruleName(r) == rule {
			return failure{
				rule:     x.at(r.Location, strings.TrimSpace(firstLine(r))),
				expected: rule + " to be true",
				got:      "no rule of the policy makes it so",
				sentence: "no rule of the policy makes " + rule + " true",
			}, true
		}
	}
	return failure{}, false
}

// falseHead explains a rule whose body held but whose value is false.
func (x *explainer) falseHead(s *span) (failure, bool) {
	r, ok := s.node.(*ast.Rule)
	if !ok || r.Head.Value == nil {
		return failure{}, false
	}
	sc := x.scene(s, s.exitLoc)
	if v, ok := r.Head.Value.Value.(ast.Var); ok {
		if call, ok := sc.calls[v]; ok {
			f := x.compare(sc, call.Operator().String(), call.Operands()[:len(call.Operands())-1], source(call.Location))
			f.rule = x.at(call.Location, source(call.Location))
			return f, true
		}
	}
	got := sc.operand(r.Head.Value)
	return failure{
		rule:     x.at(r.Location, strings.TrimSpace(firstLine(r))),
		expected: ruleName(r) + " to be true",
		got:      ruleName(r) + " is " + show(got.value),
		sentence: ruleName(r) + " is " + show(got.value),
	}, true
}

func firstLine(r *ast.Rule) string {
	text := r.String()
	if r.Location != nil && string(r.Location.Text) != "default" {
		text = string(r.Location.Text)
	}
	line, _, _ := strings.Cut(text, "\n")
	return strings.TrimSuffix(strings.TrimSpace(line), " {")
}

func (x *explainer) at(l *ast.Location, text string) string {
	if l == nil {
		return x.id + ".rego: " + text
	}
	return fmt.Sprintf("%s.rego:%d: %s", x.id, l.Row, text)
}

func (x *explainer) scene(s *span, locals *ast.ValueMap) *scene {
	sc := newScene(s.body(), locals, s.names, x.q)
	sc.lookup = x.refs
	return sc
}

// describe turns the failed expression of s into words.
func (x *explainer) describe(s *span, expr *ast.Expr) failure {
	sc := x.scene(s, s.locals)
	text := source(expr.Location)
	f := failure{}
	switch {
	case expr.Negated:
		f.expected, f.got = text, "the opposite holds"
		f.sentence = text + " does not hold"
	case expr.IsCall():
		f = x.compare(sc, expr.Operator().String(), expr.Operands(), text)
	default:
		if t, ok := expr.Terms.(*ast.Term); ok {
			o := sc.operand(t)
			f = unmet(text+" to be true", o.label+" is "+show(o.value))
		} else {
			f = unmet(text+" to hold", "it does not")
		}
	}
	f.rule = x.at(expr.Location, text)
	f.wants = x.wants(sc, s.body(), expr)
	return f
}

func unmet(expected, got string) failure {
	return failure{expected: expected, got: got, sentence: got}
}

// compare words a failed comparison.
func (x *explainer) compare(sc *scene, op string, terms []*ast.Term, text string) failure {
	ops := make([]operand, len(terms))
	for i, t := range terms {
		ops[i] = sc.operand(t)
	}
	for _, o := range ops {
		if o.missingRef() {
			f := unmet(o.label+" to be registered", "no "+o.label+" is registered, or it has expired")
			if first := ops[0]; first.ref == "" && first.label != "" {
				f.sentence = first.text() + ": " + f.got
			}
			return f
		}
	}
	if len(ops) < 2 {
		got := make([]string, len(ops))
		for i, o := range ops {
			got[i] = o.text()
		}
		return unmet(text+" to hold", strings.Join(got, ", "))
	}
	a, b := ops[0], ops[1]
	if a.label == "" && b.label != "" && op != "internal.member_2" {
		a, b = b, a
	}
	if a.value == nil && (op == "eq" || op == "equal" || b.value == nil) {
		return undefined(terms, ops, text)
	}
	phrase, ok := map[string][2]string{
		"internal.member_2": {"one of", "is not in"},
		"eq":                {"", "is not"}, "equal": {"", "is not"},
		"neq": {"other than", "is also"},
		"gt":  {"more than", "is not more than"}, "gte": {"at least", "is less than"},
		"lt": {"less than", "is not less than"}, "lte": {"at most", "is more than"},
	}[op]
	if !ok {
		return unmet(text+" to hold", a.text()+", "+b.text())
	}
	want := strings.TrimSpace(phrase[0] + " " + show(b.value))
	return failure{
		expected: strings.TrimSpace(a.label + " to be " + want),
		got:      a.text(),
		sentence: a.text() + " " + phrase[1] + " " + b.text(),
	}
}

// undefined words an expression that names something that is not there.
func undefined(terms []*ast.Term, ops []operand, text string) failure {
	label := text
	for i, o := range ops {
		if _, isRef := terms[i].Value.(ast.Ref); isRef && o.value == nil {
			label = o.label
		}
	}
	return unmet(text+" to be defined", label+" is not there")
}

// wants returns the reference values that would meet the failed expression,
// and those that are missing in the rest of body.
func (x *explainer) wants(sc *scene, body ast.Body, failed *ast.Expr) map[string]json.RawMessage {
	wants := map[string]json.RawMessage{}
	for _, expr := range body {
		if expr.Index < failed.Index || expr.Negated || !expr.IsCall() || len(expr.Operands()) != 2 {
			continue
		}
		op := expr.Operator().String()
		a, b := sc.operand(expr.Operand(0)), sc.operand(expr.Operand(1))
		if a.ref != "" {
			a, b = b, a
		}
		if op == refCall || b.ref == "" || a.value == nil || a.ref != "" {
			continue
		}
		if _, known := wants[b.ref]; !known && (expr == failed || b.missingRef()) {
			wants[b.ref] = json.RawMessage(wanted(op, a.value, b.value))
		}
	}
	return wants
}

// register is the command that registers reference values.
func register(wants map[string]json.RawMessage) string {
	b, err := json.Marshal(wants)
	if err != nil || len(wants) == 0 {
		return ""
	}
	quoted := strings.ReplaceAll(string(b), "'", `'\''`)
	return "if you trust it, register the measurement: echo '" + quoted + "' | coffer kbs reference-value set -"
}

// wanted is the JSON of a reference value that have would satisfy.
func wanted(op string, have, current ast.Value) string {
	if op != "internal.member_2" {
		return asJSON(have)
	}
	list := ast.NewArray()
	if a, ok := current.(*ast.Array); ok {
		list = a
	}
	x, err := ast.JSON(list.Append(ast.NewTerm(have)))
	if err != nil {
		return asJSON(have)
	}
	b, err := json.Marshal(x)
	if err != nil {
		return asJSON(have)
	}
	return string(b)
}
