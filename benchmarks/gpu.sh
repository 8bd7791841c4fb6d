#!/usr/bin/env bash
# What one GPU does, in at most eight minutes: kernels, speed, largest batch, latency, a profile.
#
#   benchmarks/gpu.sh /tmp/gpu                  PYTHON=python3, MINUTES=8, WHEELS=FOLDER
#   TINY=1 benchmarks/gpu.sh /tmp/gpu           the same sections at a size for any machine
#
# Takes the Python and the jax that are found there, and no network. What that Python lacks (grain
# and orbax are not needed) comes as wheels in $WHEELS. Sections stand by value: each is left out
# if the time is short, and its results are written before the next one begins.
set -euo pipefail
out=$1
python=${PYTHON:-python3}
end=$((SECONDS + 60 * ${MINUTES:-8}))
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --target "$out/libraries" "$WHEELS"/*.whl
  export PYTHONPATH="$PYTHONPATH:$out/libraries"
fi
cd "$here/.."

tiny=() lm1b=64 owt=8 lengths=128,1024
if [ -n "${TINY:-}" ]; then
  tiny=(--config.model.width=32 --config.model.depth=2 --config.model.heads=2 --vocab=512 --length=32)
  lm1b=4 owt=2 lengths=16,32
fi

section() { # name, seconds that it needs, words of python
  local name=$1 needs=$2 left=$((end - SECONDS)) start=$SECONDS code=0
  shift 2
  if ((left < needs)); then
    echo "$name: left out, $left s are left and it takes $needs" | tee -a "$out/summary.txt"
    return
  fi
  timeout "$left" "$python" "$@" >"$out/$name.out" 2>"$out/$name.err" || code=$?
  echo "$name: exit $code after $((SECONDS - start)) s" | tee -a "$out/summary.txt"
}

flm() { # name, seconds, words of flm benchmark with a config
  local name=$1 needs=$2
  shift 2
  section "$name" "$needs" -m flm_jax benchmark "$@" "${tiny[@]}" --json
}

: >"$out/summary.txt"
section versions 5 -c "import jax; print(jax.__version__, jax.devices(), jax.devices()[0].device_kind)"
section kernels 20 "$here/gpu_kernels.py" "$lengths"
flm lm1b 60 train --config=configs/lm1b.py --batch=$lm1b --space=projected --repeats=10
flm owt 60 train --config=configs/owt.py --batch=$owt --space=projected --repeats=10
flm lm1b_onehot 60 train --config=configs/lm1b.py --batch=$lm1b --space=onehot
flm owt_onehot 60 train --config=configs/owt.py --batch=$owt --space=onehot
flm lm1b_distill 60 train --config=configs/lm1b.py:distill --batch=$lm1b --space=projected
flm profile 50 profile --config=configs/owt.py --batch=$owt --space=projected --repeats=2 --output="$out/profile"
flm latency 90 latency --config=configs/lm1b.py --methods=flm,fmlm,ar --evaluations=1,2,4,8,32 \
  --repeats=5 --max_batch=8
batch=4096
[ -z "${TINY:-}" ] || batch=8
if [ -z "${TINY:-}" ]; then
  flm largest 90 table --config=configs/owt.py --shapes=1024x50258 --space=projected --repeats=1 \
    --max_batch=$batch --output="$out/largest"
else # shapes are its own, and --length and --vocab are not
  tiny=("${tiny[@]:0:3}")
  flm largest 90 table --config=configs/owt.py --shapes=16x256 --space=projected --repeats=1 \
    --max_batch=$batch --output="$out/largest"
fi
echo "results are in $out"
