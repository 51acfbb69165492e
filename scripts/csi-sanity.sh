#!/usr/bin/env bash
# Kubernetes' conformance tests for CSI drivers (github.com/kubernetes-csi/csi-test), built once into build/tools.
#
#   scripts/csi-sanity.sh              build it, if that has not been done
#   scripts/csi-sanity.sh ARGUMENT...  and run it
#
# The release wants Go 1.23. Debian 12 has 1.19, which cannot change its own version as later ones can; but a toolchain
# is a module like any other, and its checksum is in Go's public log.
set -euo pipefail
cd "$(dirname "$0")/.."

release=v5.4.0
toolchain=go1.24.7
tools=$PWD/build/tools
program=$tools/csi-sanity-$release

fail() {
  printf 'csi-sanity: %s\n' "$*" >&2
  exit 1
}

minor() { "$1" env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p'; }

build() {
  local go=go version
  if ! command -v go >/dev/null; then
    [ "$(id -u)" = 0 ] || fail "there is no Go: install golang-go, or run this as root."
    echo "csi-sanity: installing golang-go" >&2
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends golang-go >/dev/null
  fi
  version=$(minor go)
  [ -n "$version" ] || fail "the version of $(command -v go) cannot be read: set PATH to a Go of 1.19 or later."
  if [ "$version" -lt 21 ]; then
    case $(uname -m) in
      x86_64) arch=amd64 ;;
      aarch64) arch=arm64 ;;
      *) fail "no toolchain is known for $(uname -m): install Go 1.23 or later." ;;
    esac
    echo "csi-sanity: fetching $toolchain" >&2
    local scratch directory
    scratch=$(mktemp -d)
    directory=$(cd "$scratch" && go mod download -json "golang.org/toolchain@v0.0.1-$toolchain.linux-$arch" |
      sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p')
    rmdir "$scratch"
    [ -n "$directory" ] || fail "the toolchain $toolchain cannot be fetched."
    mkdir -p "$tools"
    [ -x "$tools/$toolchain/bin/go" ] || {
      cp -r --no-preserve=mode "$directory" "$tools/$toolchain.part" # modules have no executable files
      chmod -R +x "$tools/$toolchain.part/bin" "$tools/$toolchain.part/pkg/tool"
      mv "$tools/$toolchain.part" "$tools/$toolchain"
    }
    go=$tools/$toolchain/bin/go
    export GOROOT=$tools/$toolchain
  fi
  echo "csi-sanity: building $release with $("$go" version)" >&2
  GOTOOLCHAIN=${GOTOOLCHAIN:-auto} GOBIN=$tools/bin "$go" install "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@$release"
  mv "$tools/bin/csi-sanity" "$program"
}

[ -x "$program" ] || build
[ $# = 0 ] || exec "$program" "$@"
