#!/usr/bin/env bash
# SPDX-FileCopyrightText: The coffer authors
# SPDX-License-Identifier: Apache-2.0
#
# Installs what the demo and the tests run beside coffer: Debian packages, and
# containerd, runc, crictl and registry at the versions pinned below.
#
#   integration/tools/install.sh            everything
#   integration/tools/install.sh containerd one tool (names: see tools= below)
#   integration/tools/install.sh peers      what the benchmark measures coffer against
#
# Binaries go to $COFFER_TOOLS (default: .tools/bin of this checkout, which git
# ignores). A tool is built once per version: a stamp beside it says which.
set -euo pipefail

containerd=v2.4.2
runc=v1.5.2
crictl=v1.37.0
registry=v3.1.2
tools="containerd runc crictl registry"
# skopeo makes the images of other tools; mmdebstrap makes the demo's system image;
# busybox-static is the content of small test images; e2fsprogs makes full disks; fuse3
# has mount.fuse, by which containerd finds mount helpers.
packages="skopeo mmdebstrap busybox-static e2fsprogs fuse3 util-linux iproute2 gcc libc6-dev libseccomp-dev pkg-config ca-certificates"
peers="umoci" # and skopeo

here=$(cd "$(dirname "$0")/../.." && pwd)
bin=${COFFER_TOOLS:-$here/.tools/bin}
mkdir -p "$bin"

say() { printf 'tools: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

install_packages() {
  local missing=()
  for p in $packages; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$p")
  done
  [ ${#missing[@]} -eq 0 ] && return
  command -v apt-get >/dev/null || die "these packages are missing and there is no apt-get: ${missing[*]}"
  [ "$(id -u)" = 0 ] || die "run as root, or install: ${missing[*]}"
  say "Debian packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$bin/apt.log" 2>&1 ||
    { apt-get update -qq >>"$bin/apt.log" 2>&1 &&
      apt-get install -y -qq --no-install-recommends "${missing[@]}" >>"$bin/apt.log" 2>&1; } ||
    die "apt-get could not install them: $(tail -n 3 "$bin/apt.log")"
}

# have TOOL VERSION: the tool is there in this version.
have() { [ -x "$bin/$1" ] && [ "$(cat "$bin/.$1.version" 2>/dev/null)" = "$2" ]; }
stamp() { printf '%s\n' "$2" >"$bin/.$1.version"; }

# go_install TOOL VERSION PACKAGE…: static binaries straight from the module proxy.
go_install() {
  local tool=$1 version=$2
  shift 2
  have "$tool" "$version" && return
  say "building $tool $version (once; minutes on a small machine)"
  for p in "$@"; do
    (cd / && GOBIN=$bin GOFLAGS=-buildvcs=false CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "$p@$version") ||
      die "$tool $version did not build"
  done
  stamp "$tool" "$version"
}

# runc's module has replace directives, which "go install" refuses, and its
# seccomp support needs cgo: it is built inside a copy of the module.
install_runc() {
  have runc "$runc" && return
  say "building runc $runc (once)"
  local dir src
  src=$(cd / && go mod download -json "github.com/opencontainers/runc@$runc" | sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p')
  [ -n "$src" ] || die "runc $runc could not be downloaded"
  dir=$work/runc
  mkdir "$dir"
  cp -r "$src/." "$dir" && chmod -R u+w "$dir"
  (cd "$dir" && CGO_ENABLED=1 GOFLAGS=-buildvcs=false go build -trimpath -tags seccomp -ldflags "-s -w -X main.version=${runc#v}" -o "$bin/runc" .) ||
    die "runc $runc did not build"
  stamp runc "$runc"
}

install_tool() {
  case $1 in
  containerd)
    local m=github.com/containerd/containerd/v2/cmd
    go_install containerd $containerd $m/containerd $m/ctr $m/containerd-shim-runc-v2
    ;;
  runc) install_runc ;;
  crictl) go_install crictl $crictl sigs.k8s.io/cri-tools/cmd/crictl ;;
  peers) packages=$peers install_packages ;;
  registry) go_install registry $registry github.com/distribution/distribution/v3/cmd/registry ;;
  *) die "unknown tool $1: one of $tools peers" ;;
  esac
}

command -v go >/dev/null || die "go is not on the PATH: install Go 1.26 or later"
exec 9>"$bin/.lock"
flock 9 # two runs on one checkout build each tool once
# Everything that is only needed meanwhile, the compiler's files included, goes
# with this folder, however the script ends.
work=$(mktemp -d)
export GOTMPDIR=$work TMPDIR=$work
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
install_packages
for t in ${*:-$tools}; do install_tool "$t"; done
