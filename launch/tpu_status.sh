#!/usr/bin/env bash
# Says what the slice and the run on it are doing.
#
#   launch/tpu_status.sh NAME --zone=ZONE               the slice, then one line for each worker
#   launch/tpu_status.sh NAME --zone=ZONE --follow      follows the log of worker 0 (--worker=3: 3)
#   launch/tpu_status.sh NAME --zone=ZONE --finished    for loops: 0 when the run has ended for good
#   further: [--project=P] [--dry-run]
#
# Exit code of the second line's workers: 0 running, 3 finished, 4 ended with an error or stopped,
# 5 not running, launch/tpu_run.sh starts it. Anything else is gcloud's own.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"

options+=(worker)
switches+=(follow finished)
worker=0
read_arguments "$@"
if [[ -n $follow ]]; then on_workers "$worker" 'bash tpu_worker.sh log'; exit; fi
do_or_show gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
  --format='value(name.basename(),state.state)' || true
code=0
on_workers all 'bash tpu_worker.sh status' || code=$?
if [[ -z $finished ]]; then exit "$code"; fi
[[ $code == 3 || $code == 4 ]]
