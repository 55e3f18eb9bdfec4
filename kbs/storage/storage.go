// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package storage names what a Key Broker Service keeps. Every consumer
// declares the few methods it needs; storage/bolt has them all.
//
// All implementations share one contract. Values are copied in and out.
// Get and Delete answer errdefs.ErrNotFound for a key that is not there,
// PutNew answers errdefs.ErrAlreadyExists for one that is, atomically. A
// closed or unreachable store answers errdefs.ErrUnavailable, a full one
// errdefs.ErrResourceExhausted. Errors name the namespace and key, never the
// value. A successful write is durable before the call returns.
package storage

// Namespaces. A key is unique within its namespace.
const (
	// Resources holds secrets; the key is repository/type/tag.
	Resources = "repository"
	// Policies holds the policies in force; the key is the policy id.
	Policies = "policy"
	// PolicyHistory holds every policy text ever set; the key is policy id,
	// slash, time, slash, digest.
	PolicyHistory = "policy_history"
	// ReferenceValues holds reference values; the key is the name.
	ReferenceValues = "reference_value"
	// Keys holds the private keys of the service itself.
	Keys = "key"
)
