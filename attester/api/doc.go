// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package api is the generated code of the Attestation Agent's ttrpc service.
// Only attester/service and clients of the agent import it; no type of it
// appears in a domain package.
package api

//go:generate sh -c "cd ../.. && protoc -I . --plugin=$(go tool -n protoc-gen-go) --plugin=$(go tool -n protoc-gen-go-ttrpc) --go_out=. --go_opt=module=github.com/coffer-cc/coffer --go-ttrpc_out=. --go-ttrpc_opt=module=github.com/coffer-cc/coffer attester/api/attestation-agent.proto"
