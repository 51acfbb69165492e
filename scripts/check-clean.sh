#!/usr/bin/env bash
# Nothing may stay behind after the tests or the demo.
#
#   check-clean.sh save FILE       remember what is on the machine now
#   check-clean.sh compare FILE    say what has come since and is still there; exit 1 if there is anything
#   check-clean.sh end             end what this run left: processes with its mark, mounts below TMPDIR
#
# What counts: FUSE mounts of fusevol and mounts below TMPDIR, loop devices, containers of the default storage, and
# processes of fusevol or with this run's mark ($FUSEVOL_TEST_RUN) in their environment. On a machine that
# others use at the same time, CHECK_CLEAN=own looks only at TMPDIR and the mark.
set -euo pipefail

own=${FUSEVOL_TEST_RUN:-none}
unset FUSEVOL_TEST_RUN # or the programs started here would count as left behind
tmp=${TMPDIR:-/tmp}
only_own=${CHECK_CLEAN:-all}

mounts() {
  # fields of mountinfo: 3 device, 5 mount point, after " - ": type, source
  awk -v tmp="$tmp/" -v own="$only_own" '{
    rest = substr($0, index($0, " - ") + 3); split(rest, f, " ")
    ours = index($5, tmp) == 1 && tmp != "/tmp/"
    if (ours || (own != "own" && f[1] ~ /^fuse\.(fusevol|bindfs)/)) print "mount", f[1], $3, $5
  }' /proc/self/mountinfo
}

loops() {
  local device file
  for device in /sys/block/loop*/loop; do
    [ -r "$device/backing_file" ] || continue
    file=$(cat "$device/backing_file" 2>/dev/null) || continue
    case "$only_own:$file" in
      own:"$tmp"/* | all:*) printf 'loop device %s of %s\n' "$(basename "${device%/loop}")" "$file" ;;
    esac
  done
}

processes() {
  local dir pid line
  for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    [ "$pid" != "$$" ] || continue
    line=$(tr '\0' ' ' 2>/dev/null <"$dir/cmdline") || continue
    [ -n "$line" ] || continue # a kernel thread, or one that is just going
    case "$line" in
      *check-clean.sh* | *scripts/test.sh* | *.ci/run* | tee\ *) continue ;;
    esac
    if tr '\0' '\n' 2>/dev/null <"$dir/environ" | grep -qx "FUSEVOL_TEST_RUN=$own"; then
      printf 'process %s: %s\n' "$pid" "$line"
    elif [ "$only_own" != own ]; then
      case "$line" in
        *"-m fusevol.server"* | *"-m fusevol.keeper"* | *"fusevol agent"* | "bindfs "*) printf 'process %s: %s\n' "$pid" "$line" ;;
      esac
    fi
  done
}

containers() {
  [ "$only_own" != own ] && [ -d /var/lib/containers/storage ] && command -v podman >/dev/null || return 0
  podman ps --all --format 'container {{.ID}} {{.Names}}' 2>/dev/null || true
}

look() { { mounts; loops; processes; containers; } | sort; }

end() {
  local what pid type device point
  only_own=own
  [ "$own" != none ] && [ "$tmp" != /tmp ] && [ -d "$tmp" ] || return 0
  for _ in 1 2 3; do # who starts others may be quicker than this loop
    while read -r what pid _; do
      [ "$what" != process ] || kill -9 "${pid%:}" 2>/dev/null || true
    done < <(processes)
    # a process that waits for a FUSE answer does not die before its connection is aborted
    while read -r _ type device point; do
      case "$type" in fuse*) { echo 1 >"/sys/fs/fuse/connections/${device#*:}/abort"; } 2>/dev/null || true ;; esac
      umount --lazy "$point" 2>/dev/null || true
    done < <(mounts | tac)
  done
}

case "${1:-} ${2:-}" in
  "end ") end ;;
  "save "?*) look >"$2" ;;
  "compare "?*)
    for attempt in 1 2 3 4 5 6 7 8 9 10; do # the last process of a test may need a moment to leave
      left=$(comm -13 "$2" <(look))
      [ -n "$left" ] || exit 0
      [ "$attempt" = 10 ] || sleep 0.5
    done
    printf 'Left behind:\n%s\n' "$left" >&2
    exit 1
    ;;
  *)
    echo "usage: check-clean.sh save|compare FILE, check-clean.sh end" >&2
    exit 2
    ;;
esac
