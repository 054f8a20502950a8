# What run.sh and recipes.sh have in common: arguments, folders, environment, the build, steps and their record. They
# source it, with `root`, `results` (the folder below results/, on a CPU below build/) and `written` (files of an earlier
# call, which go) set; it reads the variables that run.sh names. SPDX-License-Identifier: MIT
set -uo pipefail

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
[[ $device == cuda ]] && out=${out:-$root/results/$results} || out=${out:-$root/build/$results/cpu}
build_dir=${HREL_BUILD_DIR:-$root/build/gpu}
budget=${HREL_BUDGET_S:-560}
mkdir -p "$out" "$build_dir"/{bin,home,packages,tmp} || exit 2
out=$(cd "$out" && pwd) build_dir=$(cd "$build_dir" && pwd)
rm -f "${written[@]/#/$out/}"

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

cut_off() { [[ ${resumable-} ]] && echo unfinished || echo "$1"; }

# step NAME LIMIT KEEP COMMAND...: runs a command for LIMIT seconds at most, and not longer than leaves KEEP seconds of
# the budget for the steps after it. @limit@ in the command becomes the seconds after which it should end by itself.
# With optional=1 a failure is no failure of the run; with resumable=1 a command that is cut off is unfinished, which is
# none either. Returns whether the command passed.
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
    124 | 137) status=$(cut_off "timed out") ;;
    *) status=failed ;;
  esac
  if [[ $code != 0 && (${optional-} || $(tail -c "+$((from + 1))" "$out/log.txt") == *"Device not supported"*) ]]; then
    status=unavailable
  fi
  record step "$name" "$status" --seconds $((SECONDS - begin)) --limit-s "$limit" --exit-code "$code" --log-from "$from"
  return "$code"
}

stopped() {
  [[ ${running-} ]] && kill "$running" && record step "$running_name" "$(cut_off failed)" --reason "stopped from outside"
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
