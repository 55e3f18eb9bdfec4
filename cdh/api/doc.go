// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package api is the generated code of the Confidential Data Hub's ttrpc
// services. Only cdh/service and clients of the hub import it; no type of it
// appears in a domain package.
package api

//go:generate sh -c "cd ../.. && protoc -I . --plugin=$(go tool -n protoc-gen-go) --plugin=$(go tool -n protoc-gen-go-ttrpc) --go_out=. --go_opt=module=github.com/coffer-cc/coffer --go-ttrpc_out=. --go-ttrpc_opt=module=github.com/coffer-cc/coffer cdh/api/api.proto cdh/api/keyprovider.proto"
