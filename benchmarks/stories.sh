#!/usr/bin/env bash
# Landmarks on text with a known truth: rows, trainings, evaluations, table and plots.
#
#   benchmarks/stories.sh stories260K.bin /tmp/landmarks
#
# About six hours on one core; a second call goes on where the first one stopped.
# The vocabulary tok512.bin lies beside stories260K.bin.
set -euo pipefail
truth=$1
out=$2
here=$(cd "$(dirname "$0")" && pwd)
export XLA_FLAGS="--xla_cpu_multi_thread_eigen=false ${XLA_FLAGS:-}" # one core
mkdir -p "$out/json"

flm prepare --truth="$truth" --rows=256000 --data_dir="$out/rows"

train() { # name, stage, more options
  flm train --config="$here/../configs/stories.py:$2" --workdir="$out/$1" \
    --config.data.options.path="$out/rows" \
    --config.train.sample_every=0 --config.train.keep_latest=20 "${@:3}"
}

evaluate() { # file, run, more options; every point from 192 samples of seed 0
  [ -e "$out/json/$1.json" ] || flm evaluate --checkpoint="$out/$2" --num_samples=192 \
    --output="$out/json/$1.json" --samples="$out/json/$1" "${@:3}"
}

train flm pretrain
train fast pretrain,fast
train mdlm mdlm
train ar ar
train fmlm distill --config.teacher="$out/flm" --config.train.max_minutes=39

evaluate flm flm --steps=8,32,128
evaluate flm_fresh flm --steps=8,32,128 --sampler=churn
evaluate fast_fresh fast --steps=8,32,128 --sampler=churn
evaluate fast fast --steps=8,32,128 --sampler=refinement --rounds=16 --threshold=-1
evaluate fast_64 fast --steps=32,64 --sampler=refinement --rounds=64 --threshold=-1
evaluate fmlm fmlm --steps=1,2,4,8
evaluate mdlm mdlm --steps=8,32,128
evaluate mdlm_confidence mdlm --steps=8,32,64 --sampler_options=order=confidence
evaluate mdlm_drawn mdlm --steps=8,32 --sampler_options=order=drawn
evaluate ar ar
for step in 500 1000 2000; do
  evaluate "flm@$step" flm --step=$step --steps=32
  evaluate "mdlm@$step" mdlm --step=$step --steps=32
  evaluate "ar@$step" ar --step=$step
done

python "$here/stories.py" "$out"
