#!/usr/bin/env bash
# The GPU protocol: build, pytest -m cuda, compute-sanitizer, the benchmarks of every layer and of the estimator, Nsight
# Compute.
#
#   benchmarks/gpu/run.sh [--device cuda|cpu] [OUT_DIR]     OUT_DIR: results/gpu, on a CPU build/gpu/cpu
#
# For a bare machine with a GPU, nvcc, Python and PyTorch, and no network. One command that ends within HREL_BUDGET_S
# (560 s) and leaves what it has if it is stopped: protocol.json (the machine, and the status of every step, rewritten
# after each), layers.json, estimator.json, profile.json, log.txt. A failed step does not stop the rest; the exit status is 1 where one
# failed. A tool that is not installed is recorded as absent. SPDX-License-Identifier: MIT
#
# --device cpu runs the same steps small with the hrel_ext that PYTHON has installed, to test this script.
# Read from the environment: PYTHON (python3), HREL_BUDGET_S, HREL_BUILD_DIR (build/gpu), HREL_WHEELS (a folder of
# wheels for packages that are missing), HREL_COMMIT (for a copy without the history), CMAKE_CUDA_ARCHITECTURES (that of
# the GPU), CUDA_HOME (/usr/local/cuda). Nothing is written outside OUT_DIR, HREL_BUILD_DIR and the build/ of pip.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
results=gpu written=(protocol.json layers.json estimator.json profile.json log.txt profile.csv)
source "$root/benchmarks/gpu/steps.sh"

if [[ $device == cuda ]]; then
  step build 240 250 bash -c build && record describe
else
  record step build skipped --reason "uses the hrel_ext that is installed"
fi
step tests 150 230 "$PYTHON" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -m cuda -rf \
  --tb=short --maxfail=100 --durations=5 "$root/tests/test_cuda.py"
step cases 30 200 "$PYTHON" "$here/sanitize_cases.py" --device "$device"

# sanitizer TOOL LIMIT KEEP: without torch's pool, which would hide a read beyond a tensor, and on our kernels alone,
# but for initcheck: what a kernel that it does not watch has written would count as not written.
sanitizer() {
  local tool=$1 filter=() help option
  if [[ $device == cpu ]]; then
    record step "$tool" skipped --reason "no GPU"
    return
  elif ! command -v compute-sanitizer >/dev/null; then
    record step "$tool" absent --reason "compute-sanitizer is not installed"
    return
  fi
  help=$(compute-sanitizer --help 2>&1)
  for option in --kernel-name --kernel-regex; do  # its name in newer and in older versions
    [[ $tool != initcheck && $help == *"$option"* ]] && filter=("$option" kns=hrel) && break
  done
  step "$@" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 99 --print-limit 20 \
    "${filter[@]}" "$PYTHON" "$here/sanitize_cases.py" --device cuda
}
sanitizer memcheck 60 180
small=()
[[ $device == cpu ]] && small=(--small)
step bench 210 110 "$PYTHON" "$here/bench_layers.py" --device "$device" "${small[@]}" --time-limit @limit@ \
  --out "$out/layers.json"
step estimator 45 75 "$PYTHON" "$here/bench_estimator.py" --device "$device" "${small[@]}" --time-limit @limit@ \
  --out "$out/estimator.json"
sanitizer synccheck 40 75
sanitizer initcheck 40 60

# One layer with long maps and one with many filters. --metrics: for what its warps wait. --clock-control none: the
# GPU's clocks are not ours to set. HOME: ncu writes its section files there.
if [[ $device == cpu ]]; then
  record step profile skipped --reason "no GPU"
elif ! command -v ncu >/dev/null; then
  record step profile absent --reason "ncu is not installed"
elif optional=1 step profile 45 10 env HOME="$build_dir/home" ncu --csv --page details --log-file "$out/profile.csv" \
  --clock-control none --kernel-name-base demangled --kernel-name regex:hrel:: --launch-count 12 \
  --section SpeedOfLight --section LaunchStats --section Occupancy --section WarpStateStats \
  --section MemoryWorkloadAnalysis --metrics 'regex:smsp__average_warps_issue_stalled_.*_per_issue_active\.ratio' \
  "$PYTHON" "$here/bench_layers.py" --device cuda --profile "vgg16 conv1-2" "vgg16 conv8-10"; then
  record profile "$out/profile.csv" >>"$out/log.txt" 2>&1 || echo "profile.csv holds no kernel: see log.txt"
fi
sanitizer racecheck 150 5  # last, as the slowest by far: on an H100 it reached N = 200 in 95 s
record finish
