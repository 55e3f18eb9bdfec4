# SPDX-FileCopyrightText: The coffer authors
# SPDX-License-Identifier: Apache-2.0
#
# Releases a resource only to a fully affirmed attester.
#
# input: the attestation token. data: plugin, resource-path, query.
package policy

import rego.v1

default allow := false

allow if {
	count(input.submods) > 0
	every submod in input.submods {
		submod["ear.status"] == "affirming"
	}
}

# Why a request was denied, for the one who has to repair it.
reasons contains {
	"rule": "every submod ear.status is affirming",
	"expected": "affirming",
	"got": sprintf("%s: %s%s", [name, status, findings(submod)]),
	"next": next_step(submod),
} if {
	some name, submod in input.submods
	status := object.get(submod, "ear.status", "no ear.status")
	status != "affirming"
}

reasons contains {
	"rule": "there is at least one submod",
	"expected": "a token with at least one submod",
	"got": "none",
	"next": "attest again and use the token that the service issued",
} if {
	count(object.get(input, "submods", {})) == 0
}

findings(submod) := sprintf(" (%s)", [concat("; ", texts)]) if {
	texts := [sprintf("%s %d: %s", [f.claim, f.value, f.got]) |
		some f in submod["ear.coffer.findings"]
	]
	count(texts) > 0
} else := ""

next_step(submod) := concat("; ", steps) if {
	all := [f.next | some f in submod["ear.coffer.findings"]]
	steps := [s | some i, s in all; not s in array.slice(all, 0, i)]
	count(steps) > 0
} else := "look at the attestation policy named in the token"
