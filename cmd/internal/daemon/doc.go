// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package daemon is the process plumbing that the mains of coffer's daemons
// share: signals and exit codes, logging, strict configuration files, readiness
// and unix sockets. It knows nothing of what a daemon does.
package daemon
