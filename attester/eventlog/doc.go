// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package eventlog keeps the log of what happened in a TEE since its boot: each
// event is extended into a runtime measurement register and written to a file,
// so that a verifier can replay the file against the register in the evidence.
//
// The file is the Attestation Agent Event Log (AAEL): entries of the TCG2 crypto
// agile format, appended to the firmware's log (the ACPI table CCEL) before both
// go to a verifier. Registers are counted as in the UEFI specification: 0 is the
// launch measurement, 1 to 4 are runtime registers.
//
// The package runs inside the TEE and trusts its directory. What the firmware's
// log says comes from the host and is parsed as such. It imports nothing of ours.
package eventlog
