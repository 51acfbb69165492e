#!/usr/bin/env bash
# Makes a clean Debian 12 ready to build, test and demonstrate fusevol: system packages, then .venv with the
# project (editable) and its development tools. Quick when everything is there; safe to run again.
#
#   PYTHON=/usr/bin/python3.12 scripts/setup.sh    another interpreter (3.11 or later)
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

# Debian packages. Conffiles that an administrator changed stay as they are, and PostgreSQL gets no cluster that would run
# as a service from then on.
install() {
  local conf=/etc/postgresql-common/createcluster.d/fusevol-setup.conf failed=0
  echo "setup: installing $*"
  export DEBIAN_FRONTEND=noninteractive
  mkdir -p "${conf%/*}"
  echo 'create_main_cluster = false' >"$conf"
  { apt-get update -qq &&
    apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold "$@" >/dev/null; } || failed=1
  rm -f "$conf"
  return $failed
}

# An interpreter that can make a virtual environment and compile an extension; Debian's own otherwise.
usable() {
  "$1" -c '
import os, sys, sysconfig
import ensurepip, venv
ok = sys.version_info >= (3, 11) and os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
sys.exit(not ok)' >/dev/null 2>&1
}

packages=(
  ca-certificates gcc libc6-dev libfuse3-dev pkg-config # pyfuse3 is compiled on the spot
  fuse3                                                 # fusermount3, for mounts by an ordinary user
  acl attr procps util-linux iproute2                         # getfacl, getfattr, ps, losetup: the tests look with other eyes
  e2fsprogs xfsprogs btrfs-progs                        # backing filesystems on loop devices
  busybox-static podman runc                            # real containers, without a registry
  buildah debootstrap                                   # the image, on a base made here
  qemu-system-x86                                       # guests with other kernels (tests/guest)
  bindfs fio stress-ng                                  # the other subject of the benchmarks; load
  postgresql                                            # a database on a volume
)
optional=(ceph-mon ceph-mgr ceph-osd ceph-mds ceph-fuse) # a cluster for the tests of CephFS, which are skipped without
python=${PYTHON:-python3}
if ! usable "$python"; then
  [ -z "${PYTHON:-}" ] || fail "$PYTHON is not a Python 3.11 or later with venv and its header files: set PYTHON to one that is."
  python=/usr/bin/python3
  packages+=(python3 python3-dev python3-venv)
fi

missing=() wanted=()
if command -v dpkg-query >/dev/null; then
  installed=$(dpkg-query -W -f='${db:Status-Abbrev}${Package}\n' "${packages[@]}" "${optional[@]}" 2>/dev/null | sed -n 's/^ii *//p') || true
  for package in "${packages[@]}"; do
    grep -qxF -- "$package" <<<"$installed" || missing+=("$package")
  done
  for package in "${optional[@]}"; do
    grep -qxF -- "$package" <<<"$installed" || wanted+=("$package")
  done
fi
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || fail "these Debian packages are missing: ${missing[*]}; install them, or run this as root."
  install "${missing[@]}"
elif ! command -v dpkg-query >/dev/null; then
  for tool in gcc pkg-config fusermount3 getfattr setfacl mkfs.xfs mkfs.btrfs podman bindfs fio stress-ng busybox qemu-system-x86_64; do
    command -v "$tool" >/dev/null || fail "this is not Debian, so install these by hand and run it again: gcc, pkg-config, libfuse3's headers, fuse3, acl, attr, xfsprogs, btrfs-progs, podman, runc, a static busybox, bindfs, fio, stress-ng, PostgreSQL, qemu ($tool was not found)."
  done
fi
if [ ${#wanted[@]} -gt 0 ] && [ "$(id -u)" = 0 ]; then
  install "${wanted[@]}" ||
    echo "setup: ${wanted[*]} cannot be installed, so the tests of CephFS will be skipped" >&2
fi
usable "$python" || fail "no Python 3.11 or later with venv and its header files was found: set PYTHON to one."

stamp=$(cat pyproject.toml hatch_build.py agent/csi/csi.proto scripts/setup.sh <("$python" -VV) <(pwd) | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ] || ! .venv/bin/python -c 'import pyfuse3, fusevol' 2>/dev/null; then
  echo "setup: building .venv with $("$python" -V)"
  rm -rf .venv
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
  # pytest compiles its plugins by itself, and would do so again in each run that may not write
  empty=$(mktemp -d)
  PYTHONDONTWRITEBYTECODE='' .venv/bin/python -m pytest -p no:cacheprovider -c /dev/null --rootdir "$empty" "$empty" >/dev/null || true
  rmdir "$empty"
  echo "$stamp" >.venv/stamp
fi
