# SPDX-FileCopyrightText: The coffer authors
# SPDX-License-Identifier: Apache-2.0
#
# What evidence about a CPU earns, on the scale of EAR trust claims.
#
# input: one object named after the TEE, report_data, init_data and their
# claims. Reference values: query_reference_value(name), null when absent.
package policy

import rego.v1

default executables := 33 # unrecognized runtime

default hardware := 97 # unrecognized or unsafe platform

default configuration := 36 # unsafe configuration

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
}

# sample: no hardware behind it, for development only.

executables := 3 if {
	input.sample
	input.sample.launch_digest in query_reference_value("launch_digest")
}

hardware := 2 if {
	input.sample
	input.sample.svn in query_reference_value("svn")
	input.sample.platform_version.major == query_reference_value("major_version")
	minimum := query_reference_value("minimum_minor_version")
	is_number(minimum)
	input.sample.platform_version.minor >= minimum
}

configuration := 2 if {
	input.sample
	input.sample.debug == false
}

# tdx: Intel Trust Domain Extensions.

executables := 3 if {
	boot_chain_known
	some kernel in input.tdx.uefi_event_logs
	kernel.type_name == "EV_EFI_BOOT_SERVICES_APPLICATION"
	"File(kernel)" in kernel.details.device_paths
	some kernel_digest in kernel.digests
	kernel_digest.digest == query_reference_value("tdvfkernel")
	some params in input.tdx.uefi_event_logs
	params.type_name == "EV_EVENT_TAG"
	params.details.string == "LOADED_IMAGE::LoadOptions"
	some params_digest in params.digests
	params_digest.digest == query_reference_value("tdvfkernelparams")
} else := 4 if {
	input.tdx
	input.tdx.quote.body.rtmr_1 in query_reference_value("rtmr_1")
	input.tdx.quote.body.rtmr_2 in query_reference_value("rtmr_2")
}

boot_chain_known if {
	input.tdx.quote.body.rtmr_1 in query_reference_value("rtmr_1")
	input.tdx.quote.body.rtmr_2 in query_reference_value("rtmr_2")
}

hardware := 2 if {
	input.tdx
	input.tdx.quote.header.tee_type == "81000000"
	input.tdx.quote.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	input.tdx.quote.body.mr_td in query_reference_value("mr_td")
	input.tdx.tcb_status == "UpToDate"
	input.tdx.collateral_expiration_status == "0"
}

configuration := 2 if {
	input.tdx
	input.tdx.td_attributes.debug == false
	input.tdx.quote.body.xfam in query_reference_value("xfam")
}

# Identifiers that a resource policy may go by.

extensions := [{
	"name": "ear.trustee.identifiers",
	"key": -18,
	"value": {"validated": identifiers},
}]

containers := object.get(input, ["init_data_claims", "agent_policy_claims", "containers"], [])

identifiers[name] := values if {
	some name, values in {
		"container_images": [image |
			some c in containers
			image := c.OCI.Annotations["io.kubernetes.cri.image-name"]
		],
		"container_uids": [uid |
			some c in containers
			uid := c.OCI.Process.User.UID
		],
	}
	count(values) > 0
}
