// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package policy evaluates the Rego policies of a Key Broker Service: which
// trust claims evidence earns, and which resource a token opens. A denial is
// explained: the expression that failed, the values it saw and what to do.
//
// Policies come from the administrator and are trusted to decide, not to
// reach out: they cannot open connections or read the environment, and each
// evaluation has a time limit. Inputs come from attesters and are data only.
//
// Rego v1 and the v0 text of existing deployments are both accepted.
package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// maxText is the largest policy accepted, in bytes.
const maxText = 1 << 20

// maxPrepared is how many policies stay prepared at once.
const maxPrepared = 64

// ReferenceValues answers query_reference_value. A name that is absent or
// has expired is errdefs.ErrNotFound.
type ReferenceValues interface {
	ReferenceValue(ctx context.Context, name string) (any, error)
}

// Options tune an Engine. The zero value is safe.
type Options struct {
	// Timeout limits one evaluation; 0 is 2 s.
	Timeout time.Duration
	// Logger gets evaluation failures; nil discards them.
	Logger *slog.Logger
}

// Document is one policy text with its name.
type Document struct {
	ID   string
	Text string
}

// Digest identifies the text: "sha256:" and hex.
func (d Document) Digest() string {
	sum := sha256.Sum256([]byte(d.Text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Engine evaluates policies. It prepares each text once. It is safe for
// concurrent use.
type Engine struct {
	refs    ReferenceValues
	timeout time.Duration
	log     *slog.Logger

	mu       sync.Mutex
	prepared map[string]*program
}

// NewEngine returns an Engine whose policies read reference values from refs.
func NewEngine(refs ReferenceValues, o Options) *Engine {
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Engine{refs: refs, timeout: o.Timeout, log: o.Logger, prepared: map[string]*program{}}
}

// program is one prepared policy.
type program struct {
	query  rego.PreparedEvalQuery
	module *ast.Module
}

// has says whether the policy has a rule of that name.
func (p *program) has(rule string) bool {
	for _, r := range p.module.Rules {
		if len(r.Head.Reference) > 0 && r.Head.Reference[0].Equal(ast.VarTerm(rule)) {
			return true
		}
	}
	return false
}

// CheckResource compiles a resource policy. A text that cannot decide is
// errdefs.ErrInvalidArgument and names line and column.
func (e *Engine) CheckResource(d Document) error { return e.check(d, "allow") }

// CheckAttestation compiles an attestation policy likewise.
func (e *Engine) CheckAttestation(d Document) error { return e.check(d, "trust_claims") }

func (e *Engine) check(d Document, rule string) error {
	p, err := e.compile(d)
	if err != nil {
		return err
	}
	if !p.has(rule) {
		return fmt.Errorf("policy %s: has no rule %s, so nothing would ever pass; add one: %w", d.ID, rule, errdefs.ErrInvalidArgument)
	}
	return nil
}

// prepare returns the prepared form of d, from the cache where possible.
func (e *Engine) prepare(d Document) (*program, error) {
	key := d.ID + " " + d.Digest()
	e.mu.Lock()
	p, ok := e.prepared[key]
	e.mu.Unlock()
	if ok {
		return p, nil
	}
	p, err := e.compile(d)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.prepared) >= maxPrepared {
		clear(e.prepared)
	}
	e.prepared[key] = p
	return p, nil
}

func (e *Engine) compile(d Document) (*program, error) {
	module, version, err := parseModule(d)
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w: %w", d.ID, errdefs.ErrInvalidArgument, err)
	}
	if got := module.Package.Path.String(); got != "data.policy" {
		return nil, fmt.Errorf("policy %s: package is %s; write package policy: %w",
			d.ID, strings.TrimPrefix(got, "data."), errdefs.ErrInvalidArgument)
	}
	compiler := ast.NewCompiler().WithCapabilities(capabilities()).WithDefaultRegoVersion(version)
	compiler.Compile(map[string]*ast.Module{module.Package.Location.File: module.Copy()})
	if compiler.Failed() {
		return nil, fmt.Errorf("policy %s: %w: %w", d.ID, errdefs.ErrInvalidArgument, compiler.Errors)
	}
	query, err := rego.New(
		rego.Query("data.policy"),
		rego.Compiler(compiler),
		rego.Store(requestStore{}),
		e.queryReferenceValue(),
	).PrepareForEval(context.Background()) //nolint:contextcheck // compiling is local and finite
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w: %w", d.ID, errdefs.ErrInvalidArgument, err)
	}
	return &program{query: query, module: module}, nil
}

// parseModule reads Rego v1, and v0 where that fails. When neither fits, the
// error is that of the version the text seems to be written in.
func parseModule(d Document) (*ast.Module, ast.RegoVersion, error) {
	if strings.TrimSpace(d.Text) == "" {
		return nil, 0, errors.New("text is empty")
	}
	if len(d.Text) > maxText {
		return nil, 0, fmt.Errorf("text is larger than %d bytes", maxText)
	}
	file := d.ID + ".rego"
	parse := func(v ast.RegoVersion) (*ast.Module, error) {
		caps := capabilities()
		return ast.ParseModuleWithOpts(file, d.Text, ast.ParserOptions{RegoVersion: v, Capabilities: caps})
	}
	module, err := parse(ast.RegoV1)
	if err == nil && module != nil {
		return module, ast.RegoV1, nil
	}
	if old, oldErr := parse(ast.RegoV0); oldErr == nil && old != nil {
		return old, ast.RegoV0, nil
	}
	if err == nil {
		err = errors.New("no package")
	}
	return nil, 0, err
}

// queryReferenceValue is the builtin through which policies read reference
// values. An absent one is null; a failing store stops the evaluation.
func (e *Engine) queryReferenceValue() func(*rego.Rego) {
	return rego.Function1(queryReferenceValueDecl(), func(bc rego.BuiltinContext, name *ast.Term) (*ast.Term, error) {
		text, ok := name.Value.(ast.String)
		if !ok {
			return nil, rego.NewHaltError(errors.New("name is not a string"))
		}
		value, err := e.refs.ReferenceValue(bc.Context, string(text))
		if errdefs.IsNotFound(err) {
			return ast.NullTerm(), nil
		}
		if err != nil {
			if failed, ok := bc.Context.Value(storeFailure{}).(*error); ok {
				*failed = err
			}
			return nil, rego.NewHaltError(err)
		}
		v, err := ast.InterfaceToValue(value)
		if err != nil {
			return nil, rego.NewHaltError(err)
		}
		return ast.NewTerm(v), nil
	})
}

// storeFailure is the context key under which an evaluation collects the
// error of a failing store: Rego's own errors lose its class.
type storeFailure struct{}

// eval evaluates p and returns the document data.policy.
func (e *Engine) eval(ctx context.Context, p *program, q question, opts ...rego.EvalOption) (map[string]any, error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	var failed error
	ctx = context.WithValue(ctx, storeFailure{}, &failed)
	opts = append(opts, rego.EvalParsedInput(q.input), rego.EvalTransaction(transaction{q.data}))
	rs, err := p.query.Eval(ctx, opts...)
	if failed != nil {
		return nil, fmt.Errorf("query_reference_value: %w", failed)
	}
	if err != nil {
		if ctx.Err() != nil || topdown.IsCancel(err) {
			return nil, fmt.Errorf("evaluation took longer than %s: %w", e.timeout, errdefs.ErrUnavailable)
		}
		return nil, err
	}
	if len(rs) != 1 || len(rs[0].Expressions) != 1 {
		return map[string]any{}, nil
	}
	doc, ok := rs[0].Expressions[0].Value.(map[string]any)
	if !ok {
		return nil, errors.New("data.policy is not an object")
	}
	return doc, nil
}

// question is what one evaluation sees.
type question struct {
	input ast.Value
	data  map[string]any
}

func newQuestion(input any, data map[string]any) (question, error) {
	v, err := ast.InterfaceToValue(input)
	if err != nil {
		return question{}, fmt.Errorf("policy input: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return question{input: v, data: data}, nil
}
