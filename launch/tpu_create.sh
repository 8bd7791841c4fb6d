#!/usr/bin/env bash
# Gets a Cloud TPU slice, from one host to a pod, and waits until it is there.
#
#   launch/tpu_create.sh NAME --zone=ZONE --type=v5p-64 [--spot] [--project=P] [--version=IMAGE]
#       [--poll=30] [--dry-run] [-- flags of gcloud compute tpus queued-resources create]
#
# The request stands in Google's queue. Ctrl-C stops the waiting only; the same command waits on,
# does nothing if the slice is there, and asks again if a spot slice was taken away or the request
# failed. Types count cores for v2, v3, v4, v5p (v5p-64 has 32 chips) and chips for v5e and v6e.
# Examples of further flags: --reserved, --network=N --subnetwork=S, --internal-ips.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"

options+=(type version poll)
switches+=(spot)
poll=30
read_arguments "$@"
[[ -n $type ]] || fail "--type=TYPE is missing, for example --type=v5p-64"
type=${type/#v5e-/v5litepod-} # what gcloud calls it
if [[ -z $version ]]; then
  case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    *) fail "no image is known for --type=$type; give --version=IMAGE (gcloud compute tpus tpu-vm versions list)" ;;
  esac
fi

queue=(gcloud compute tpus queued-resources)
ask() {
  do_or_show "${queue[@]}" create "$name" "${where[@]}" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot} \
    ${rest[@]+"${rest[@]}"}
}
remove() { do_or_show "${queue[@]}" delete "$name" "${where[@]}" --force --quiet; }
state() {
  "${queue[@]}" describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || echo NONE
}

if [[ -n $dry_run ]]; then ask; exit; fi
asked=
while true; do
  now=$(state)
  case $now in
    ACTIVE) echo "$name is there; next: launch/tpu_run.sh"; exit ;;
    NONE | SUSPENDED | FAILED)
      [[ -z $asked ]] || { echo "error: the request for $name ended as $now; look: gcloud compute tpus queued-resources describe $name --zone=$zone" >&2; exit 1; }
      if [[ $now != NONE ]]; then echo "$name was $now: asking again"; remove; fi
      ask
      asked=yes
      ;;
    *) echo "$(date +%T) $name: $now (Ctrl-C leaves it in the queue)"; sleep "$poll" ;;
  esac
done
