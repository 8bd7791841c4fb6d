#!/usr/bin/env bash
# Stops the run on a slice; with --delete gives the slice back too, which ends the bill.
#
#   launch/tpu_stop.sh NAME --zone=ZONE [--delete] [--project=P] [--dry-run]
#
# All workers save a checkpoint and end; the same launch/tpu_run.sh continues. What lies on the
# disks of the workers is lost with --delete; the workdir on shared storage is not. A slice that
# cannot be reached any more is deleted all the same. Without a run, or a slice, nothing happens.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"

switches+=(delete)
read_arguments "$@"
code=0
on_workers all 'if [ -f tpu_worker.sh ]; then bash tpu_worker.sh stop; fi' || code=$?
if [[ -z $delete ]]; then exit "$code"; fi
[[ $code == 0 ]] || echo "warning: the run could not be stopped on every worker (exit code $code)" >&2
queue=(gcloud compute tpus queued-resources)
if [[ -z $dry_run ]] && ! "${queue[@]}" describe "$name" "${where[@]}" >/dev/null; then
  echo "$name is not there, or cannot be asked for (see above)"
  exit 1
fi
do_or_show "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
