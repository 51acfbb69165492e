#!/usr/bin/env bash
# Runs pytest (arguments go to it) in a temporary directory of its own, writes build/test/junit.xml, and then looks
# for mounts, loop devices, processes and containers that a test left behind.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p build/test
TMPDIR=$(mktemp -d /tmp/fv.XXXXXX) # short: paths of unix sockets end at 107 bytes
chmod 755 "$TMPDIR"                # tests also act as other users, who must get through it
FUSEVOL_TEST_RUN=${TMPDIR##*.}     # inherited by every process that a test starts
PYTHONPYCACHEPREFIX=$TMPDIR/pycache # as installed: what starts finds its code compiled, and the tree stays clean
export TMPDIR FUSEVOL_TEST_RUN PYTHONPYCACHEPREFIX
unset PYTHONDONTWRITEBYTECODE
scripts/check-clean.sh save "$TMPDIR/before"
# a run that is cut short ends what it has started, too: pytest does when it can, this if it was killed itself
trap 'scripts/check-clean.sh end' EXIT
trap 'exit 130' INT TERM

.venv/bin/python -m pytest -p no:cacheprovider --junitxml=build/test/junit.xml "$@" 2>&1 | tee build/test/pytest.log
status=${PIPESTATUS[0]}

if scripts/check-clean.sh compare "$TMPDIR/before"; then
  [ "$status" != 0 ] || rm -rf "$TMPDIR"
else
  status=1
fi
[ ! -d "$TMPDIR" ] || echo "test: the tests' files are kept in $TMPDIR"
exit "$status"
