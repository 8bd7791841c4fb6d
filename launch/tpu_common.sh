#!/usr/bin/env bash
# launch/tpu_common.sh: what tpu_create.sh, tpu_run.sh, tpu_status.sh and tpu_stop.sh share. Sourced.
#
# After `read_arguments "$@"` there are name, where=(--zone=... [--project=...]), one variable for
# each option that the script listed in `options` and `switches`, and rest=(what follows --).
# shellcheck disable=SC2034  # the variables are for the scripts that source this
set -euo pipefail

fail() { echo "error: $1" >&2; exit 2; }

# The comment at the top of the script, up to the line before "set -euo".
usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//p}' "$0"; exit 2; }

options=(zone project)
switches=(dry_run)
name='' where=() rest=()

read_arguments() {
  local word key known
  [[ $# -ge 1 && $1 != -* ]] || usage
  name=$1
  shift
  [[ $name =~ ^[a-z][a-z0-9-]{0,38}$ ]] || fail "$name is no name for a slice; use a-z, 0-9 and -"
  for key in "${options[@]}" "${switches[@]}"; do printf -v "$key" '%s' "${!key:-}"; done
  while [[ $# -gt 0 ]]; do
    word=$1
    shift
    if [[ $word == -- ]]; then rest=("$@"); break; fi
    known=
    for key in "${options[@]}"; do
      if [[ $word == --$key=* ]]; then printf -v "$key" '%s' "${word#*=}"; known=yes; fi
    done
    for key in "${switches[@]}"; do
      if [[ $word == --${key//_/-} ]]; then printf -v "$key" yes; known=yes; fi
    done
    [[ -n $known ]] || fail "unknown option $word; flags of flm_jax.main come after --"
  done
  [[ -n $zone ]] || fail "--zone=ZONE is missing, for example --zone=us-east5-a"
  where=(--zone="$zone")
  [[ -z $project ]] || where+=(--project="$project")
}

# Runs the words, or prints them so that they can be pasted into a shell.
do_or_show() { if [[ -n $dry_run ]]; then printf '%q ' "$@"; echo; else "$@"; fi; }

# on_workers all|0|1-3 COMMAND. gcloud runs it on every worker at once, says which ones failed, and
# ends with the code of the first that did. Several workers need the key in an ssh agent.
on_workers() {
  do_or_show gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}
