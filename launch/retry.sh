#!/usr/bin/env bash
# Runs a command again while it ends with a code that a restart mends: docs/operations.md has the table.
#
#   launch/retry.sh [--times=20] [--pause=10] [--code-file=FILE] COMMAND...
#
# A checkpoint is resumed by the same command, so restarting is all there is to do. SIGTERM, SIGINT,
# SIGHUP and SIGUSR1 end the command, which saves first; then nothing is restarted. An error (1), a
# mistake of the user (2) and a finished run (0) end the loop too. FILE gets the exit code when all
# is over.
set -euo pipefail

times=20
pause=10
code_file=
while [[ ${1:-} == --* ]]; do
  case $1 in
    --times=*) times=${1#*=} ;;
    --pause=*) pause=${1#*=} ;;
    --code-file=*) code_file=${1#*=} ;;
    *) echo "error: unknown option $1; see the top of $0" >&2; exit 2 ;;
  esac
  shift
done
[[ $# -gt 0 ]] || { echo "error: no command; see the top of $0" >&2; exit 2; }

# shellcheck disable=SC2329  # called by the trap
note() { local last=$?; if [[ -n $code_file ]]; then echo "$last" >"$code_file"; fi; }
trap note EXIT
stopped=
child=
forward() { stopped=yes; if [[ -n $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi; }
trap forward TERM INT HUP USR1 # under nohup HUP stays ignored

for ((attempt = 1; attempt <= times; attempt++)); do
  "$@" &
  child=$!
  if [[ -n $stopped ]]; then forward; fi # the signal came before there was a child
  code=0
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # the wait was interrupted by a signal
    code=0
    wait "$child" || code=$?
  done
  case $code in
    75 | 134 | 135 | 137 | 138 | 139 | 143) ;;
    *) exit "$code" ;;
  esac
  [[ -z $stopped ]] || exit "$code"
  echo "exit code $code, attempt $attempt of $times: again in $pause s" >&2
  sleep "$pause"
done
exit "$code"
