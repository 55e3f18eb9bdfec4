# SPDX-FileCopyrightText: The coffer authors
# SPDX-License-Identifier: Apache-2.0
#
# Gives resources to hardware TEEs only, and says why it denies.
package policy

import rego.v1

hardware := {"tdx", "snp", "az-tdx-vtpm", "az-snp-vtpm"}

default allow := false

allow if {
	some submod in input.submods
	submod["ear.status"] == "affirming"
	some tee, _ in submod["ear.veraison.annotated-evidence"]
	tee in hardware
}

reasons contains {
	"rule": "only hardware TEEs get this key",
	"expected": "evidence of tdx or snp",
	"got": sprintf("evidence of %s", [concat(", ", found)]),
	"next": "run the image on a machine with Intel TDX or AMD SEV-SNP, or ask the key owner to allow this one",
} if {
	not allow
}

found := {tee |
	some submod in input.submods
	some tee in object.keys(submod["ear.veraison.annotated-evidence"])
	tee in hardware | {"sample"}
}
