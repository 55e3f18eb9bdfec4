#!/usr/bin/env bash
# SPDX-FileCopyrightText: The coffer authors
# SPDX-License-Identifier: Apache-2.0
#
# Every source file that people write carries the two licence lines.
set -euo pipefail
cd "$(dirname "$0")/../.."
bad=$(git ls-files -- '*.go' '*.s' '*.sh' '*.proto' '*.rego' Makefile .ci/run | grep -vE '\.pb\.go$|/testdata/' |
  xargs grep -L 'SPDX-License-Identifier: Apache-2.0' || true)
[ -z "$bad" ] || { printf 'no licence header:\n%s\n' "$bad"; exit 1; }
