#!/usr/bin/env bash
# Trains on a GKE cluster that was made with XPK (pip install xpk), on TPUs or GPUs.
#
#   launch/xpk.sh NAME --cluster=C --zone=ZONE --project=P --image=IMAGE --type=v5p-64 [--slices=1] \
#       -- --config=configs/owt.py --workdir=/mnt/flm/owt [more flags of flm train]
#   launch/xpk.sh ... --dry-run                                prints the exact command
#
# IMAGE is built from launch/tpu.Dockerfile or launch/cuda.Dockerfile. --workdir must be on storage
# that all pods share: attach it to the cluster once with `xpk storage attach` (Filestore). XPK
# restarts the workload up to --restarts times (default 50) when a process dies (exit code 75, or
# 127 and above); a restart resumes the checkpoint. An error or a mistake ends it. Given again, it
# leaves a workload of this name alone. Look: xpk workload list. Stop: xpk workload delete.
set -euo pipefail

fail() { echo "error: $1" >&2; exit 2; }
[[ $# -ge 1 && $1 != -* ]] || { sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2; }
name=$1
shift
cluster='' zone='' project='' image='' type='' slices=1 restarts=50 dry=''
flags=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --cluster=*) cluster=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --dry-run) dry=yes ;;
    --) shift; flags=("$@"); break ;;
    *) fail "unknown option $1; flags of flm_jax.main come after --" ;;
  esac
  shift
done
for needed in cluster zone project image type; do
  [[ -n ${!needed} ]] || fail "--$needed=... is missing"
done
[[ ${#flags[@]} -gt 0 ]] || fail "nothing to run; add -- --config=FILE --workdir=DIR"

case $type in
  h100* | h200* | b200* | a3*)
    device=(--device-type="$type" --num-nodes="$slices")
    # XPK pastes the command of GPU workloads into quotes of its own, which undo ours.
    [[ "${flags[*]}" =~ ^[A-Za-z0-9\ ./:=,+@%_-]*$ && $(printf '%q' "${flags[@]}") != *\\* ]] ||
      fail "XPK cannot pass spaces, quotes or \$ in flags to GPUs: ${flags[*]}"
    ;;
  *) device=(--tpu-type="$type" --num-slices="$slices") ;;
esac
where=(--cluster="$cluster" --zone="$zone" --project="$project")
# exec: XPK sends SIGTERM to the shell around the command only.
command=$(printf '%q ' exec python -m flm_jax.main --distributed "${flags[@]}")
words=(xpk workload create --workload="$name" "${where[@]}" --docker-image="$image" "${device[@]}"
  --max-restarts="$restarts" --restart-on-exit-codes=75 --termination-grace-period-seconds=120
  --command="${command% }")
if [[ -n $dry ]]; then printf '%q ' "${words[@]}"; echo; exit; fi
if xpk workload list "${where[@]}" --filter-by-job="^$name\$" | grep -qw -- "$name"; then
  echo "$name is there already; for another run: xpk workload delete --workload=$name ${where[*]}"
  exit
fi
"${words[@]}"
