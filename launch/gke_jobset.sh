#!/usr/bin/env bash
# Trains on a GKE cluster that has the JobSet controller: fills in launch/gke_jobset.yaml.
#
#   launch/gke_jobset.sh run NAME --type=v5p-64 --image=IMAGE --claim=CLAIM [--spot] [--dry-run] \
#       -- --config=configs/owt.py --workdir=/mnt/flm/owt [more flags of flm train]
#   launch/gke_jobset.sh status NAME | logs NAME | stop NAME
#
# Types: v4-N, v5p-N (N cores), v5e-N, v6e-N (N chips) are one slice; GPUxCOUNT is COUNT on each of
# --hosts=N nodes (h100x8, h200x8, a100x8, l4x1, t4x1). CLAIM is a ReadWriteMany volume claim, seen
# at /mnt/flm; with --workdir=gs://BUCKET/FOLDER none is needed. Further: --topology=4x4 where a slice has another shape, --restarts=100,
# --namespace=N, --context=C. IMAGE is built from launch/tpu.Dockerfile or launch/cuda.Dockerfile.
# run leaves a running job alone and starts a failed one again; stop sends SIGTERM, which saves,
# and the same run continues.
set -euo pipefail

fail() { echo "error: $1" >&2; exit 2; }
[[ $# -ge 2 && $2 != -* ]] || { sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2; }
action=$1
name=$2
shift 2
[[ $name =~ ^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$ ]] || fail "$name is no name for a job; use up to 30 of a-z, 0-9 and -"
type='' image='' claim='' hosts='' topology='' restarts=100 namespace='' context='' spot='' dry=''
flags=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --type=*) type=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --claim=*) claim=${1#*=} ;;
    --hosts=*) hosts=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --namespace=*) namespace=${1#*=} ;;
    --context=*) context=${1#*=} ;;
    --spot) spot=yes ;;
    --dry-run) dry=yes ;;
    --) shift; flags=("$@"); break ;;
    *) fail "unknown option $1; flags of flm_jax.main come after --" ;;
  esac
  shift
done

kubectl=(kubectl)
[[ -z $context ]] || kubectl+=(--context="$context")
[[ -z $namespace ]] || kubectl+=(--namespace="$namespace")
do_or_show() { if [[ -n $dry ]]; then printf '%q ' "$@"; echo; else "$@"; fi; }

# A string as JSON, which is YAML too. Kubernetes replaces $(NAME); $$ keeps it as it is.
quoted() {
  local text=$1
  [[ $text != *[[:cntrl:]]* ]] || fail "a flag contains a line break or another control character"
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  # shellcheck disable=SC2016  # the characters themselves
  text=${text//'$('/'$$('}
  printf '"%s"' "$text"
}

# Sets topology, hosts and CHIPS (of one host) for a TPU type; the shapes are those of GKE's tables.
tpu_shape() {
  local chips=$1 flat=$2
  if [[ -z $topology ]]; then
    case $flat:$chips in
      flat:1) topology=1x1 ;; flat:4) topology=2x2 ;; flat:8) topology=2x4 ;;
      flat:16) topology=4x4 ;; flat:32) topology=4x8 ;; flat:64) topology=8x8 ;;
      flat:128) topology=8x16 ;; flat:256) topology=16x16 ;;
      cube:4) topology=2x2x1 ;; cube:8) topology=2x2x2 ;; cube:16) topology=2x2x4 ;;
      cube:32) topology=2x4x4 ;; cube:64) topology=4x4x4 ;; cube:128) topology=4x4x8 ;;
      cube:256) topology=4x8x8 ;; cube:512) topology=8x8x8 ;; cube:1024) topology=8x8x16 ;;
      *) fail "--type=$type has no usual shape; give --topology, for example 4x4x4" ;;
    esac
  fi
  # Machines have 4 chips each; give --hosts=1 for the eight-chip machines of v5e and v6e.
  if [[ -z $hosts ]]; then hosts=$((chips > 4 ? chips / 4 : 1)); fi
  CHIPS=$((chips / hosts))
}

# The names in capitals are those in the file.
# shellcheck disable=SC2034
render() {
  local word pairs=() key text
  local NAME=$name IMAGE HOSTS RESTARTS=$restarts STORAGE ARGUMENTS ENVIRONMENT='[]' ANNOTATIONS='{}'
  local SELECTOR RESOURCE CHIPS
  IMAGE=$(quoted "$image")
  STORAGE='emptyDir: {}' # a disk of each pod's own
  if [[ -n $claim ]]; then STORAGE="persistentVolumeClaim: {claimName: $(quoted "$claim")}"; fi
  if [[ $type =~ ^(v4|v5p|v5e|v5litepod|v6e)-([0-9]+)$ ]]; then
    RESOURCE=google.com/tpu
    case ${BASH_REMATCH[1]} in
      v4) word=tpu-v4-podslice; tpu_shape $((BASH_REMATCH[2] / 2)) cube ;;
      v5p) word=tpu-v5p-slice; tpu_shape $((BASH_REMATCH[2] / 2)) cube ;;
      v6e) word=tpu-v6e-slice; tpu_shape "${BASH_REMATCH[2]}" flat ;;
      *) word=tpu-v5-lite-podslice; tpu_shape "${BASH_REMATCH[2]}" flat ;;
    esac
    pairs=("cloud.google.com/gke-tpu-accelerator: $word" "cloud.google.com/gke-tpu-topology: $topology")
    ANNOTATIONS='{alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool}'
  elif [[ $type =~ ^([a-z0-9-]+)x([0-9]+)$ ]]; then
    RESOURCE=nvidia.com/gpu
    CHIPS=${BASH_REMATCH[2]}
    hosts=${hosts:-1}
    case ${BASH_REMATCH[1]} in
      h100) word=nvidia-h100-80gb ;;
      h200) word=nvidia-h200-141gb ;;
      a100) word=nvidia-tesla-a100 ;;
      a100-80gb) word=nvidia-a100-80gb ;;
      l4) word=nvidia-l4 ;;
      t4) word=nvidia-tesla-t4 ;;
      *) word=${BASH_REMATCH[1]} ;; # GKE's own name
    esac
    pairs=("cloud.google.com/gke-accelerator: $word")
    # The process id is JOB_COMPLETION_INDEX, which Kubernetes sets.
    ENVIRONMENT="[{name: JAX_COORDINATOR_ADDRESS, value: \"$name-slice-0-0.$name\"}, {name: JAX_NUM_PROCESSES, value: \"$hosts\"}]"
  else
    fail "--type=$type is no type; for example v5p-64, v5e-16, v6e-8 or h100x8"
  fi
  [[ -z $spot ]] || pairs+=('cloud.google.com/gke-spot: "true"')
  SELECTOR=$(printf ', %s' "${pairs[@]}")
  SELECTOR="{${SELECTOR:2}}"
  HOSTS=$hosts
  ARGUMENTS='["--distributed"'
  [[ $hosts != 1 || $RESOURCE != nvidia.com/gpu ]] || ARGUMENTS='["--nodistributed"'
  for word in "${flags[@]}"; do ARGUMENTS+=", $(quoted "$word")"; done
  ARGUMENTS+=']'
  text=$(<"$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml")
  for key in NAME ANNOTATIONS RESTARTS HOSTS SELECTOR IMAGE ENVIRONMENT RESOURCE CHIPS STORAGE ARGUMENTS; do
    text=${text//"\${$key}"/"${!key}"}
  done
  printf '%s\n' "$text"
}

run() {
  local yaml ended
  for needed in type image; do [[ -n ${!needed} ]] || fail "--$needed=... is missing"; done
  [[ -n $claim || " ${flags[*]-}" =~ \ --workdir=(gs|s3):// ]] || fail "--claim=... is missing"
  [[ ${#flags[@]} -gt 0 ]] || fail "nothing to run; add -- --config=FILE --workdir=DIR"
  yaml=$(render)
  if [[ -n $dry ]]; then
    echo "$(printf '%q ' "${kubectl[@]}")apply -f - <<'YAML'"
    printf '%s\nYAML\n' "$yaml"
    return
  fi
  if ended=$("${kubectl[@]}" get jobset "$name" -o 'jsonpath={.status.terminalState}' 2>/dev/null); then
    case $ended in
      Completed) echo "$name has finished; for another run: launch/gke_jobset.sh stop $name"; return ;;
      Failed) echo "$name failed: starting it again"; stop ;;
      *) echo "$name is there already; launch/gke_jobset.sh status $name"; return ;;
    esac
  fi
  "${kubectl[@]}" apply -f - <<<"$yaml"
}

stop() { do_or_show "${kubectl[@]}" delete jobset "$name" --ignore-not-found --wait=true; }

case $action in
  run | stop) "$action" ;;
  status)
    do_or_show "${kubectl[@]}" get jobset "$name"
    do_or_show "${kubectl[@]}" get pods -l "jobset.sigs.k8s.io/jobset-name=$name" -o wide
    ;;
  logs) do_or_show "${kubectl[@]}" logs -f --tail=100 "job/$name-slice-0" ;;
  *) fail "unknown action $action; one of run, status, logs, stop" ;;
esac
