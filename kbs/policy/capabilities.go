// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/types"
)

// capabilities is OPA's language without what reaches outside of the
// evaluation: the network, the process and its environment.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	kept := make([]*ast.Builtin, 0, len(c.Builtins)+1)
	for _, b := range c.Builtins {
		if !reachesOutside(b.Name) {
			kept = append(kept, b)
		}
	}
	decl := queryReferenceValueDecl()
	c.Builtins = append(kept, &ast.Builtin{
		Name:             decl.Name,
		Decl:             decl.Decl,
		Nondeterministic: true,
	})
	c.AllowNet = []string{}
	return c
}

func reachesOutside(builtin string) bool {
	switch builtin {
	case "http.send", "opa.runtime", "trace", "print", "internal.print":
		return true
	}
	return strings.HasPrefix(builtin, "net.") && builtin != "net.cidr_contains"
}

func queryReferenceValueDecl() *rego.Function {
	return &rego.Function{
		Name:             "query_reference_value",
		Decl:             types.NewFunction(types.Args(types.S), types.A),
		Memoize:          true,
		Nondeterministic: true,
	}
}
