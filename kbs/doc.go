// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package kbs speaks to a Key Broker Service: Client as an attested TEE that
// gets resources, Admin as the owner of the keys who puts them.
//
// The service is trusted with what it hands out, but not to name what a client
// asks for, and the network in between is not trusted at all: a resource is
// opened only with the ephemeral key that the evidence was bound to. Client is
// part of the trusted computing base and must not import what
// integration/closure_test.go does not list.
package kbs
