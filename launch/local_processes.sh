#!/usr/bin/env bash
# Trains on one machine: CPU, 1 to 8 GPUs or one TPU host. One process uses all devices.
#
#   launch/local_processes.sh --config=configs/owt.py --workdir=runs/owt [more flags of flm train]
#   launch/local_processes.sh --processes=2 --config=... --workdir=...    several processes on the CPU
#   launch/local_processes.sh --dry-run ...                               prints the commands only
#
# The config decides the run; --config.mesh.fsdp=8 shares parameters over 8 GPUs. Several processes
# are for trying multi-host behaviour without a cluster. Ctrl-C saves; the same command continues.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[[ -x $python ]] || python=python3
processes=1
dry=
flags=()
for word in "$@"; do
  case $word in
    --processes=*) processes=${word#*=} ;;
    --dry-run) dry=yes ;;
    *) flags+=("$word") ;;
  esac
done
[[ ${#flags[@]} -gt 0 ]] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }

# exec: signals to this script must reach Python, which saves.
show_or_run() { if [[ -n $dry ]]; then printf '%q ' "$@"; echo; else exec "$@"; fi; }

cd "$here"
if [[ $processes == 1 ]]; then
  show_or_run "$python" -m flm_jax.main --nodistributed "${flags[@]}"
  exit
fi

port=${PORT:-8476}
children=()
if [[ -z $dry ]]; then
  trap 'kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT HUP USR1
fi
for ((index = 0; index < processes; index++)); do
  show_or_run "$python" -m flm_jax.main --coordinator="127.0.0.1:$port" \
    --num_processes="$processes" --process_id="$index" "${flags[@]}" &
  children+=($!)
done
code=0
for child in "${children[@]}"; do
  one=0
  wait "$child" || one=$?
  while kill -0 "$child" 2>/dev/null; do one=0; wait "$child" || one=$?; done
  # 75 only says that another one ended; what that one said is the news.
  if [[ $one != 0 && ($code == 0 || $code == 75) ]]; then code=$one; fi
done
exit "$code"
