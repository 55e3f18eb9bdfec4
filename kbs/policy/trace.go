// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// maxSpans limits what is remembered of one evaluation, so that explaining a
// denial stays cheap whatever the policy and the input are.
const maxSpans = 20000

// maxDepth limits how far an explanation follows rules that call rules.
const maxDepth = 16

// span is one evaluation of a rule or of a nested body, with the expression
// at which it got furthest before it failed.
type span struct {
	parent  uint64
	node    ast.Node
	exited  bool
	failed  *ast.Expr
	locals  *ast.ValueMap
	names   map[ast.Var]topdown.VarMetadata
	exitLoc *ast.ValueMap
}

// tracer watches an evaluation and keeps its spans.
type tracer struct {
	spans map[uint64]*span
	order []uint64
}

func newTracer() *tracer { return &tracer{spans: map[uint64]*span{}} }

// Enabled implements topdown.QueryTracer.
func (*tracer) Enabled() bool { return true }

// Config implements topdown.QueryTracer.
func (*tracer) Config() topdown.TraceConfig { return topdown.TraceConfig{PlugLocalVars: true} }

// TraceEvent implements topdown.QueryTracer.
func (t *tracer) TraceEvent(evt topdown.Event) {
	switch evt.Op {
	case topdown.EnterOp:
		if len(t.order) < maxSpans {
			t.spans[evt.QueryID] = &span{parent: evt.ParentID, node: evt.Node}
			t.order = append(t.order, evt.QueryID)
		}
	case topdown.ExitOp:
		if s := t.spans[evt.QueryID]; s != nil {
			s.exited, s.exitLoc = true, evt.Locals
			if s.failed == nil {
				s.names = evt.LocalMetadata
			}
		}
	case topdown.FailOp:
		s := t.spans[evt.QueryID]
		expr, ok := evt.Node.(*ast.Expr)
		if s != nil && ok && (s.failed == nil || expr.Index > s.failed.Index) {
			s.failed, s.locals, s.names = expr, evt.Locals, evt.LocalMetadata
		}
	}
}

// rule returns the spans of all rules of that name, defaults left out.
func (t *tracer) rule(name string) []*span {
	var found []*span
	for _, id := range t.order {
		s := t.spans[id]
		if r, ok := s.node.(*ast.Rule); ok && !r.Default && ruleName(r) == name {
			found = append(found, s)
		}
	}
	return found
}

func ruleName(r *ast.Rule) string {
	ref := r.Head.Ref()
	if len(ref) == 0 {
		return ""
	}
	if v, ok := ref[0].Value.(ast.Var); ok {
		return string(v)
	}
	return ""
}

// closest picks the failed span that had the fewest conditions left to meet,
// after as many met ones as possible.
func closest(spans []*span) *span {
	var best *span
	for _, s := range spans {
		if s.exited || s.failed == nil {
			continue
		}
		if best == nil || s.failed.Index > best.failed.Index ||
			s.failed.Index == best.failed.Index && s.left() < best.left() {
			best = s
		}
	}
	return best
}

func (s *span) body() ast.Body {
	switch n := s.node.(type) {
	case *ast.Rule:
		return n.Body
	case ast.Body:
		return n
	default:
		return nil
	}
}

func (s *span) left() int { return len(s.body()) - s.failed.Index }

// deepest follows the failed expression of s into the rules and the bodies
// that made it fail.
func (t *tracer) deepest(s *span) *span {
	for range maxDepth {
		next := closest(t.causes(s))
		if next == nil || next == s {
			return s
		}
		s = next
	}
	return s
}

// causes returns the spans that can explain why s failed.
func (t *tracer) causes(s *span) []*span {
	if s.failed.Negated {
		return nil
	}
	if every, ok := s.failed.Terms.(*ast.Every); ok {
		return t.everyBodies(every)
	}
	var found []*span
	for _, name := range calledRules(s.failed) {
		found = append(found, t.rule(name)...)
	}
	return found
}

func (t *tracer) everyBodies(every *ast.Every) []*span {
	var found []*span
	for _, id := range t.order {
		s := t.spans[id]
		if b, ok := s.node.(ast.Body); ok && len(b) > 0 && len(every.Body) > 0 && b[0] == every.Body[0] {
			found = append(found, s)
		}
	}
	return found
}

// calledRules names the rules of package policy that an expression uses.
func calledRules(expr *ast.Expr) []string {
	var names []string
	ast.WalkRefs(expr, func(r ast.Ref) bool {
		if s := r.String(); strings.HasPrefix(s, "data.policy.") && len(r) > 2 {
			if name, ok := r[2].Value.(ast.String); ok {
				names = append(names, string(name))
			}
		}
		return false
	})
	return names
}
