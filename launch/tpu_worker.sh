#!/usr/bin/env bash
# launch/tpu_worker.sh runs on each worker of a TPU slice; tpu_run.sh sends it there. Every action may
# be repeated.
#
#   tpu_worker.sh setup COMMIT [HOST:/SHARE]   code and libraries in ~/flm_jax; share at /mnt/flm
#   tpu_worker.sh start FLAGS...               python -m flm_jax.main --distributed FLAGS
#   tpu_worker.sh status                       one line; the exit code says it too, see below
#   tpu_worker.sh log                          follows the log
#   tpu_worker.sh stop                         SIGTERM, waits for the save
#
# status: 0 running, 3 finished, 4 ended and nobody should start it again without looking,
# 5 not running, to be started (nothing started yet, machine rebooted, another process died).
# SIGTERM counts as stopped (4) only if it came from `stop`: a machine that goes down sends it too.
set -euo pipefail

code=$HOME/flm_jax
state=$HOME/flm_jax_run # run.pid, run.log, run.code, stopped
mkdir -p "$code" "$state"
who=$(hostname)

# A number in a file is not enough: after a reboot it may belong to another program.
running() {
  local pid
  pid=$(cat "$state/run.pid" 2>/dev/null) && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null |
    grep -q 'launch/retry.sh'
}

interpreter() { # a Python that the package supports; the images of TPUs come with 3.10
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import ensurepip, sys
sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

setup() {
  local commit=$1 share=${2:-} python wanted
  if running; then echo "$who: a run is going on; its code stays as it is"; return; fi
  if [[ -n $share ]] && ! mountpoint -q /mnt/flm; then
    # A fresh machine updates itself: wait for its lock on apt.
    command -v mount.nfs >/dev/null || { sudo apt-get -o DPkg::Lock::Timeout=600 update -q &&
      sudo apt-get -o DPkg::Lock::Timeout=600 install -qy nfs-common; }
    sudo mkdir -p /mnt/flm
    sudo mount -t nfs -o hard,timeo=600,retrans=3 "$share" /mnt/flm
    sudo chmod 1777 /mnt/flm
  fi
  if [[ $(cat "$code/.commit" 2>/dev/null) != "$commit" ]]; then
    # Runs that lie in this folder stay.
    rm -rf "$code/flm_jax" "$code/configs" "$code/launch" "$code/.commit"
    tar -xzf "$HOME/flm_jax.tgz" -C "$code"
    echo "$commit" >"$code/.commit"
  fi
  cd "$code"
  wanted=$(cat setup.cfg pyproject.toml | sha256sum)
  if [[ $(cat .venv/.installed 2>/dev/null) != "$wanted" ]]; then
    if [[ ! -x .venv/bin/pip ]]; then
      rm -rf .venv
      python=$(interpreter)
      if [[ -n $python ]]; then
        "$python" -m venv .venv
      else
        python3 -m pip install -q --user uv
        python3 -m uv venv -q --seed --python 3.12 .venv
      fi
    fi
    .venv/bin/python -m pip install -q --retries 10 -e '.[tpu]'
    echo "$wanted" >.venv/.installed
  fi
  echo "$who: ready, commit ${commit:0:12}"
}

start() {
  if running; then echo "$who: running already"; return; fi
  rm -f "$state/run.code" "$state/stopped"
  cd "$code"
  nohup bash launch/retry.sh --code-file="$state/run.code" \
    .venv/bin/python -m flm_jax.main --distributed "$@" >>"$state/run.log" 2>&1 </dev/null &
  echo $! >"$state/run.pid"
  echo "$who: started"
}

status() {
  local ended
  if running; then
    echo "$who: running; $(tail -c 2000 "$state/run.log" | tr '\r' '\n' | tail -n 1)"
    return 0
  fi
  ended=$(cat "$state/run.code" 2>/dev/null) || { echo "$who: not running"; return 5; }
  echo "$who: ended with exit code $ended; $(tail -n 1 "$state/run.log")"
  if [[ $ended != 0 && -e $state/stopped ]]; then return 4; fi
  case $ended in
    0) return 3 ;;
    75 | 134 | 135 | 137 | 138 | 139 | 143) return 5 ;;
    *) return 4 ;;
  esac
}

stop() {
  local second
  touch "$state/stopped"
  if ! running; then echo "$who: not running"; return; fi
  kill -TERM "$(cat "$state/run.pid")" || true
  for ((second = 0; second < 300; second++)); do
    running || { echo "$who: ended; $(tail -n 1 "$state/run.log")"; return; }
    sleep 1
  done
  echo "error: $who: still running 300 s after SIGTERM" >&2
  return 1
}

action=${1:-}
shift || true
case $action in
  setup | start | status | stop) "$action" "$@" ;;
  log) exec tail -n 100 -F "$state/run.log" ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
