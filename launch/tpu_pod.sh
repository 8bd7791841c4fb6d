#!/usr/bin/env bash
# Trains on a Cloud TPU VM slice, from one host to a pod: the same commands for all sizes.
#
#   launch/tpu_pod.sh create  NAME --zone=ZONE --type=v5p-64 [--spot]
#   launch/tpu_pod.sh install NAME --zone=ZONE [--nfs=HOST:/SHARE]     copies this repository
#   launch/tpu_pod.sh run     NAME --zone=ZONE -- --config=configs/owt.py --workdir=/mnt/flm/owt
#   launch/tpu_pod.sh status  NAME --zone=ZONE                         state, last lines of the log
#   launch/tpu_pod.sh logs    NAME --zone=ZONE [--worker=0]            follows a log
#   launch/tpu_pod.sh stop    NAME --zone=ZONE                         saves, then ends; run continues
#   launch/tpu_pod.sh delete  NAME --zone=ZONE                         ends the bill
#
# Further options: --project=P, --version=IMAGE (default: by type), --dry-run prints the exact
# commands. What follows -- are flags of flm_jax.main. Every command may be given twice: create
# finds the slice that is there, run leaves a running one alone. --workdir must be on storage that
# all workers share; --nfs mounts a share (for example Filestore) at /mnt/flm on each.
# A process that dies ends the others, and all start again by themselves (launch/retry.sh). A spot
# slice that was taken away: create, install and run once more.
set -euo pipefail

fail() { echo "error: $1" >&2; exit 2; }
usage() { sed -n '2,19s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ $# -ge 2 ]] || usage
action=$1
name=$2
shift 2
zone='' type='' version='' project='' nfs='' worker=0 spot='' dry=''
flags=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --nfs=*) nfs=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --spot) spot=yes ;;
    --dry-run) dry=yes ;;
    --) shift; flags=("$@"); break ;;
    *) fail "unknown option $1; flags of flm_jax.main come after --" ;;
  esac
  shift
done
[[ -n $zone ]] || fail "--zone=ZONE is missing, for example --zone=us-east5-a"

common=(--zone="$zone")
[[ -z $project ]] || common+=(--project="$project")
tpu=(gcloud compute tpus tpu-vm)

show_or_run() { if [[ -n $dry ]]; then printf '%q ' "$@"; echo; else "$@"; fi; }
on_workers() { show_or_run "${tpu[@]}" ssh "$name" "${common[@]}" --worker="$1" --command="$2"; }

image() { # the runtime image of a type of slice
  case $1 in
    v5litepod-* | v5e-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  [[ -n $type ]] || fail "--type=TYPE is missing, for example --type=v5p-64"
  if [[ -z $dry ]] && "${tpu[@]}" describe "$name" "${common[@]}" >/dev/null 2>&1; then
    echo "$name is there already"
    return
  fi
  show_or_run "${tpu[@]}" create "$name" "${common[@]}" --accelerator-type="$type" \
    --version="${version:-$(image "$type")}" ${spot:+--spot}
}

install() {
  local archive
  archive=$(mktemp -d)/flm_jax.tgz
  show_or_run git -C "$here" archive --format=tgz --output="$archive" HEAD
  show_or_run "${tpu[@]}" scp "$archive" "$name:flm_jax.tgz" "${common[@]}" --worker=all
  local steps='set -e; mkdir -p ~/flm_jax; tar -xzf ~/flm_jax.tgz -C ~/flm_jax; cd ~/flm_jax'
  steps+='; P=$(command -v python3.12 || command -v python3.11 || echo none)'
  steps+='; if [ $P = none ]; then sudo apt-get update -q; sudo apt-get install -qy python3.11-venv'
  steps+='; P=python3.11; fi; [ -d .venv ] || $P -m venv .venv'
  steps+='; .venv/bin/pip install -q -U pip; .venv/bin/pip install -q -e ".[tpu]"'
  if [[ -n $nfs ]]; then
    steps+='; command -v mount.nfs >/dev/null || sudo apt-get install -qy nfs-common'
    steps+="; sudo mkdir -p /mnt/flm; mountpoint -q /mnt/flm || sudo mount -t nfs $nfs /mnt/flm"
    steps+='; sudo chmod 1777 /mnt/flm'
  fi
  on_workers all "$steps"
}

run() {
  [[ ${#flags[@]} -gt 0 ]] || fail "nothing to run; add -- --config=FILE --workdir=DIR"
  local quoted
  quoted=$(printf '%q ' .venv/bin/python -m flm_jax.main --distributed "${flags[@]}")
  on_workers all "cd ~/flm_jax; if kill -0 \$(cat run.pid 2>/dev/null) 2>/dev/null; then \
echo running already; else nohup bash launch/retry.sh $quoted >> run.log 2>&1 < /dev/null & \
echo \$! > run.pid; fi"
}

case $action in
  create) create ;;
  install) install ;;
  run) run ;;
  status)
    show_or_run "${tpu[@]}" describe "$name" "${common[@]}" --format='value(state,health)'
    on_workers "$worker" 'cd ~/flm_jax; kill -0 $(cat run.pid) && echo running; tail -n 5 run.log'
    ;;
  logs) on_workers "$worker" 'tail -n 100 -f ~/flm_jax/run.log' ;;
  stop) on_workers all 'kill -TERM $(cat ~/flm_jax/run.pid) || true' ;;
  delete) show_or_run "${tpu[@]}" delete "$name" "${common[@]}" --quiet ;;
  *) usage ;;
esac
