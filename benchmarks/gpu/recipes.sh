#!/usr/bin/env bash
# The recipes for CIFAR-10 on a GPU, short schedule: VGG-16, then ResNet-56, as far as the time goes.
#
#   benchmarks/gpu/recipes.sh [--device cuda|cpu] [OUT_DIR]     OUT_DIR: results/recipes, on a CPU build/recipes/cpu
#
# For a machine as run.sh wants it, with CIFAR-10 in HREL_DATA_DIR. One call ends within HREL_BUDGET_S (560 s); the next
# call goes on where it was cut off, from HREL_RUNS_DIR, until protocol.json has every recipe as passed and OUT_DIR its
# report, NAME.json. log.txt is that of the last call. The exit status is 1 where a step failed; to be unfinished is no
# failure. SPDX-License-Identifier: MIT
#
# --device cpu runs LeNet-5 on scikit-learn's digits with the hrel_ext that PYTHON has installed, to test this script.
# Read from the environment, beside what run.sh reads: HREL_RUNS_DIR (build/gpu/runs, on a CPU OUT_DIR/runs), HREL_SEED
# (0). HREL_WHEELS: a folder of wheels for the packages of the extras prune, cli and zoo; all of them, without what they
# depend on, since pip would look there for torch, too.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
results=recipes written=(protocol.json log.txt)
for folder in HREL_DATA_DIR HREL_RUNS_DIR HREL_WHEELS; do  # the working directory changes
  [[ ${!folder-} ]] && export "$folder=$(realpath -m "${!folder}")"
done
source "$root/benchmarks/gpu/steps.sh"
seed=${HREL_SEED:-0}

packages() {
  local needs='import accelerate, rich, safetensors, torch_pruning, torchvision, typer'
  "$PYTHON" -c "$needs" && return
  if [[ ! ${HREL_WHEELS-} ]]; then
    echo "missing: one of ${needs#import }; install them or name a folder with their wheels in HREL_WHEELS"
    return 1
  fi
  "$PYTHON" -m pip install --no-index --no-deps --no-cache-dir --upgrade --root-user-action=ignore \
    --target "$build_dir/packages" "$HREL_WHEELS"/*.whl && "$PYTHON" -c "$needs"
}
export -f packages

if [[ $device == cuda ]]; then
  names=(vgg16-cifar10 resnet56-cifar10)
  runs=${HREL_RUNS_DIR:-$build_dir/runs}
  source_hash=$(cd "$root" && find csrc hrel_ext CMakeLists.txt setup.py -type f -not -name '*.pyc' -not -name '*.so' \
    -print0 | sort -z | xargs -0 sha256sum | sha256sum)
  if [[ $(cat "$build_dir/built" 2>/dev/null) == "$source_hash" ]]; then
    record step build skipped --reason "this source is built"
  else
    step build 240 60 bash -c build && echo "$source_hash" >"$build_dir/built"
  fi
  step packages 60 30 bash -c packages && record describe
else
  names=(lenet5-digits)
  runs=${HREL_RUNS_DIR:-$out/runs}
  record step build skipped --reason "uses the hrel_ext that is installed"
fi
mkdir -p "$runs" || exit 2

for name in "${names[@]}"; do
  run=$runs/$name-seed$seed
  if [[ -f $run/report.json ]]; then
    record step "$name" passed --reason "finished in an earlier call"
  elif ((budget - SECONDS < 15)); then  # it takes as long to begin
    record step "$name" unfinished --reason "the budget of $budget s is spent"
  else
    resumable=1 step "$name" "$budget" 5 "$PYTHON" -m hrel_ext.cli run "$name" --schedule short --device "$device" \
      --seed "$seed" ${HREL_DATA_DIR:+--data-dir "$HREL_DATA_DIR"} --output "$run"
  fi
  [[ -f $run/report.json ]] && cp "$run/report.json" "$out/$name-seed$seed.json"
done
record finish
