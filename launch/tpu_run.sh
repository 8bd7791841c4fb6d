#!/usr/bin/env bash
# Installs the last commit on all workers of a slice and starts a run there, in the background.
#
#   launch/tpu_run.sh NAME --zone=ZONE [--nfs=HOST:/SHARE] [--project=P] [--dry-run] \
#       -- --config=configs/owt.py --workdir=/mnt/flm/owt [more flags of flm train]
#
# --nfs mounts a share (for example Filestore) at /mnt/flm on each worker; a slice of several hosts
# needs --workdir on such storage. Every step looks first whether it is done: given again, it
# leaves a running worker alone and starts those that are not running. When a process dies the
# others end too, and launch/retry.sh starts all again; training resumes from the last checkpoint.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"

options+=(nfs)
read_arguments "$@"
[[ ${#rest[@]} -gt 0 ]] || fail "nothing to run; add -- --config=FILE --workdir=DIR"
[[ -z $nfs || $nfs =~ ^[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]*$ ]] ||
  fail "--nfs=$nfs is no HOST:/SHARE, for example --nfs=10.0.0.2:/share"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
commit=$(git -C "$here" rev-parse HEAD)
if [[ -n $(git -C "$here" status --porcelain --untracked-files=no) ]]; then
  echo "warning: uncommitted changes are not copied, only commit ${commit:0:12}" >&2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

do_or_show git -C "$here" archive --format=tgz --output="$folder/flm_jax.tgz" "$commit"
do_or_show gcloud compute tpus tpu-vm scp "$folder/flm_jax.tgz" "$here/launch/tpu_worker.sh" \
  "$name:" "${where[@]}" --worker=all
# Nothing starts anywhere before all workers are ready: a half-started job would wait in vain.
on_workers all "bash tpu_worker.sh setup $commit $nfs"
on_workers all "bash tpu_worker.sh start $(printf '%q ' "${rest[@]}")"
[[ -n $dry_run ]] || echo "started; next: launch/tpu_status.sh $name ${where[*]} --follow"
