#!/usr/bin/env bash
# What `make bench` compares with and cannot take from scripts/setup.sh: Debian's packages, and libfuse's example
# passthrough_hp, which Debian has as source only. Quick when everything is there. What cannot be had is left out of
# the comparison, with the reason in build/bench/tools.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=build/bench/tools
mkdir -p "$tools"

leave_out() { # NAME, REASON
  printf '%s\n' "$2" >"$tools/$1.why-not"
  printf 'bench-tools: %s: %s\n' "$1" "$2" >&2
}

missing_packages() {
  local package
  for package in g++ git xz-utils; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
  done
}

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends \
    -o Dpkg::Options::=--force-confold "$@" >/dev/null
}

if ! command -v apt-get >/dev/null; then
  echo "bench-tools: this is not Debian: git and a C++ compiler are used if they are there" >&2
else
  mapfile -t missing < <(missing_packages)
  if [ ${#missing[@]} -gt 0 ]; then
    echo "bench-tools: installing ${missing[*]}"
    install_packages "${missing[@]}" || echo "bench-tools: they could not be installed; what needs them is left out" >&2
  fi
fi

[ -x "$tools/passthrough_hp" ] && exit 0
rm -f "$tools/passthrough_hp.why-not"
command -v apt-get >/dev/null || { leave_out passthrough_hp "its source comes from Debian, which this is not"; exit 0; }
command -v g++ >/dev/null || { leave_out passthrough_hp "there is no C++ compiler to build it with"; exit 0; }

# The sources of the mirror that is configured already, in an apt of our own: the machine's lists stay as they are.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{parts,lists/partial,cache/archives/partial,source}
for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
  [ -e "$file" ] || continue
  case $file in
    *.sources) sed 's/^Types:.*/Types: deb-src/' "$file" >"$work/parts/$(basename "$file")" ;;
    *) sed -n 's/^deb /deb-src /p' "$file" >"$work/parts/debian.list" ;;
  esac
done
apt=(apt-get -qq -o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$work/parts" -o "Dir::State::lists=$work/lists"
  -o "Dir::Cache=$work/cache" -o "APT::Sandbox::User=root")
if ! (cd "$work/source" && timeout 120 "${apt[@]}" update && timeout 120 "${apt[@]}" source --download-only fuse3) \
  >"$work/log" 2>&1; then
  leave_out passthrough_hp "the source package fuse3 could not be fetched ($(tail -n 1 "$work/log"))"
  exit 0
fi
tar -xJf "$work"/source/fuse3_*.orig.tar.xz -C "$work/source"
defines=(-DHAVE_UTIMENSAT -DHAVE_POSIX_FALLOCATE -DHAVE_SETXATTR) # what libfuse's own build finds on Debian
mapfile -t flags < <(pkg-config --cflags --libs fuse3 | grep -o "[^[:space:]]*")
if ! g++ -O2 -D_FILE_OFFSET_BITS=64 "${defines[@]}" -o "$tools/passthrough_hp.new" "$work"/source/fuse-*/example/passthrough_hp.cc \
  "${flags[@]}" -lpthread >"$work/log" 2>&1; then
  leave_out passthrough_hp "it could not be compiled ($(grep -m 1 error: "$work/log" || tail -n 1 "$work/log"))"
  exit 0
fi
mv "$tools/passthrough_hp.new" "$tools/passthrough_hp"
echo "bench-tools: built $tools/passthrough_hp"
