#!/usr/bin/env bash
# The GPU protocol: build, pytest -m cuda, compute-sanitizer, the benchmark of every layer, Nsight Compute.
#
#   benchmarks/gpu/run.sh [--device cuda|cpu] [OUT_DIR]     OUT_DIR: results/gpu, on a CPU build/gpu/cpu
#
# For a bare machine with a GPU, nvcc, Python and PyTorch, and no network. One command that ends within HREL_BUDGET_S
# (560 s) and leaves what it has if it is stopped: protocol.json (the machine, and the status of every step, rewritten
# after each), layers.json, profile.json, log.txt. A failed step does not stop the rest; the exit status is 1 where one
# failed. A tool that is not installed is recorded as absent. SPDX-License-Identifier: MIT
#
# --device cpu runs the same steps small with the hrel_ext that PYTHON has installed, to test this script.
# Read from the environment: PYTHON (python3), HREL_BUDGET_S, HREL_BUILD_DIR (build/gpu), HREL_WHEELS (a folder of
# wheels for packages that are missing), HREL_COMMIT (for a copy without the history), CMAKE_CUDA_ARCHITECTURES (that of
# the GPU), CUDA_HOME (/usr/local/cuda). Nothing is written outside OUT_DIR, HREL_BUILD_DIR and the build/ of pip.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$root/benchmarks/gpu
device=cuda out=
while (($#)); do
  case $1 in
    --device) device=${2-} && shift ;;
    --device=*) device=${1#*=} ;;
    -*) echo "usage: $0 [--device cuda|cpu] [OUT_DIR]" >&2 && exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
if [[ $device != cuda && $device != cpu ]]; then
  echo "--device must be cuda or cpu, got '$device'" >&2
  exit 2
fi
[[ $device == cuda ]] && out=${out:-$root/results/gpu} || out=${out:-$root/build/gpu/cpu}
build_dir=${HREL_BUILD_DIR:-$root/build/gpu}
budget=${HREL_BUDGET_S:-560}
mkdir -p "$out" "$build_dir"/{bin,home,packages,tmp} || exit 2
out=$(cd "$out" && pwd) build_dir=$(cd "$build_dir" && pwd)
rm -f "$out"/{protocol,layers,profile}.json "$out"/{log.txt,profile.csv}

# The interpreter itself: compute-sanitizer watches the process it starts, not what a wrapper script starts in turn.
PYTHON=$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)') || exit 2
for folder in "${CUDA_HOME:-/usr/local/cuda}"/{bin,compute-sanitizer} /opt/nvidia/nsight-compute/*; do
  PATH=$PATH:$folder
done
PATH=$build_dir/bin:$build_dir/packages/bin:$(dirname "$PYTHON"):$PATH
export PYTHON PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 TMPDIR=$build_dir/tmp
export TORCHINDUCTOR_CACHE_DIR=$TMPDIR/inductor TRITON_CACHE_DIR=$TMPDIR/triton CUDA_CACHE_PATH=$TMPDIR/cuda
[[ $device == cpu ]] && export OMP_NUM_THREADS=1  # two on a busy machine can be many times slower than one
[[ $device == cuda ]] && export PYTHONPATH=$build_dir/packages${PYTHONPATH:+:$PYTHONPATH}
cd "$build_dir" || exit 2  # not in the source tree, which Python would import in place of the installed package

record() { "$PYTHON" "$here/protocol.py" "$out" "$@"; }

# step NAME LIMIT KEEP COMMAND...: runs a command for LIMIT seconds at most, and not longer than leaves KEEP seconds of
# the budget for the steps after it. @limit@ in the command becomes the seconds after which it should end by itself.
# With optional=1 a failure is no failure of the run. Returns whether the command passed.
step() {
  local name=$1 limit=$2 keep=$3 begin=$SECONDS from status code
  shift 3
  local left=$((budget - SECONDS - keep))
  ((left < limit)) && limit=$left
  if ((limit < 5)); then
    record step "$name" "not run" --reason "the budget of $budget s is spent"
    return 1
  fi
  from=$(stat -c %s "$out/log.txt")
  timeout --kill-after=10 "$limit" "${@//@limit@/$((limit - limit / 10 - 4))}" >>"$out/log.txt" 2>&1 &
  running=$! running_name=$name
  wait "$running"
  code=$? running=
  case $code in
    0) status=passed ;;
    124 | 137) status="timed out" ;;
    *) status=failed ;;
  esac
  if [[ $code != 0 && (${optional-} || $(tail -c "+$((from + 1))" "$out/log.txt") == *"Device not supported"*) ]]; then
    status=unavailable
  fi
  record step "$name" "$status" --seconds $((SECONDS - begin)) --limit-s "$limit" --exit-code "$code" --log-from "$from"
  return "$code"
}

stopped() {
  [[ ${running-} ]] && kill "$running" && record step "$running_name" failed --reason "stopped from outside"
  exit 143
}
trap stopped INT TERM

# Makes hrel_ext in packages/, with what its build needs. A tool that Python has as a module gets a wrapper in bin/.
build() {
  local missing=() name
  for name in cmake ninja; do
    command -v "$name" >/dev/null && continue
    if "$PYTHON" -c "import $name" 2>/dev/null; then
      printf '#!/bin/sh\nexec "%s" -m %s "$@"\n' "$PYTHON" "$name" >"$build_dir/bin/$name"
      chmod +x "$build_dir/bin/$name"
    else
      missing+=("$name")
    fi
  done
  for name in setuptools pybind11 pytest; do
    "$PYTHON" -c "import $name" 2>/dev/null || missing+=("$name")
  done
  if ((${#missing[@]})); then
    if [[ ! ${HREL_WHEELS-} ]]; then
      echo "missing for the build: ${missing[*]}; install them or name a folder with their wheels in HREL_WHEELS"
      return 1
    fi
    "$PYTHON" -m pip install --no-index --find-links "$HREL_WHEELS" --target "$build_dir/packages" "${missing[@]}" ||
      return 1
  fi
  rm -rf "$build_dir"/packages/hrel_ext*
  HREL_CUDA=ON "$PYTHON" -m pip install --verbose --no-build-isolation --no-deps --no-index --no-cache-dir --upgrade \
    --root-user-action=ignore --target "$build_dir/packages" "$root"
}
export -f build
export build_dir root

: >"$out/log.txt"
architecture=$(record start --device "$device" --budget "$budget") || exit 2
export CMAKE_CUDA_ARCHITECTURES=${CMAKE_CUDA_ARCHITECTURES:-$architecture}

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
