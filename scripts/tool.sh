#!/usr/bin/env bash
# Programs of others that tests run, each built or fetched once, into build/tools.
#
#   scripts/tool.sh NAME                build it, if that has not been done, and print its path
#   scripts/tool.sh NAME ARGUMENT...    and run it
#
# csi-sanity: Kubernetes' conformance tests for CSI drivers; helm and kustomize: what renders the manifests (built from
# their Go modules, helm in about three minutes); promtool: Prometheus' own checks (of Debian's package, not installed).
# Those modules want Go 1.23 or 1.24. Debian 12 has 1.19, which cannot change its own version as later ones can; but a toolchain
# is a module like any other, and its checksum is in Go's public log.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:-}
fail() {
  printf '%s: %s\n' "${name:-tool}" "$*" >&2
  exit 1
}

case $name in
  csi-sanity) module=github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity release=v5.4.0 ;;
  helm) module=helm.sh/helm/v3/cmd/helm release=v3.19.2 ;;
  kustomize) module=sigs.k8s.io/kustomize/kustomize/v5 release=v5.7.1 ;;
  promtool) module='' release=debian ;;
  *) fail "say which: csi-sanity, helm, kustomize or promtool." ;;
esac
shift
toolchain=go1.24.7
tools=$PWD/build/tools
program=$tools/$name-$release

minor() { "$1" env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p'; }

fetch() {
  local scratch
  scratch=$(mktemp -d)
  chmod 755 "$scratch"
  (cd "$scratch" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } &&
    dpkg-deb -x prometheus_*.deb .) >&2 2>/dev/null || fail "Debian's package prometheus cannot be fetched."
  mkdir -p "$tools"
  mv "$scratch/usr/bin/promtool" "$program"
  rm -rf "$scratch"
}

build() {
  local go=go version
  if ! command -v go >/dev/null; then
    [ "$(id -u)" = 0 ] || fail "there is no Go: install golang-go, or run this as root."
    echo "$name: installing golang-go" >&2
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
    echo "$name: fetching $toolchain" >&2
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
  echo "$name: building $release with $("$go" version)" >&2
  GOTOOLCHAIN=${GOTOOLCHAIN:-auto} GOBIN=$tools/$name-$release.part "$go" install "$module@$release" >&2
  mv "$tools/$name-$release.part/"* "$program"
  rmdir "$tools/$name-$release.part"
}

[ -x "$program" ] || if [ -n "$module" ]; then build; else fetch; fi
if [ $# = 0 ]; then echo "$program"; else exec "$program" "$@"; fi
