#!/usr/bin/env bash
# Measures this machine's GPU: run_gpu.sh STAGE [pytest arguments], or run_gpu.sh all.
#
#   tests      build the native module in place, then the tests that need a GPU
#   selftest   every backend's cases; verifies fastres's own kernels on this GPU for 'auto'
#   sanitizer  compute-sanitizer's four tools over a short list of the same cases, on fastres's own backends
#   ceilings   memory bandwidth and matrix products
#   layers     ResNet-50's convolutions and blocks in bfloat16, batch 1, 32, 256
#   models     ResNet-50 against torchvision, torch.compile and cuDNN, likewise
#   models-fp16, autotune   the same in float16, and against torch.compile's max-autotune
#
# A stage stands alone, ends within ten minutes, and leaves a record in benchmarks/results/<gpu>/<date>-<stage>.json,
# which is written as it goes and shown at the end. The exit status is 0 only if all went well.
# FASTRES_BENCH_DEVICE=cpu is a dry run on the CPU, with its records in a temporary folder. Others: settings.py; PYTHON;
# FASTRES_BENCH_RESULTS, the folder for records.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export FASTRES_BENCH_DEVICE="${FASTRES_BENCH_DEVICE:-cuda}"
python="${PYTHON:-python3}"
dtype="${FASTRES_BENCH_DTYPES:-$([[ $FASTRES_BENCH_DEVICE == cpu ]] && echo float32 || echo bfloat16)}"
all=(tests selftest sanitizer ceilings layers models models-fp16 autotune)

usage() {
  sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

folder() {
  if [[ -n "${FASTRES_BENCH_RESULTS:-}" ]]; then
    echo "$FASTRES_BENCH_RESULTS"
  elif [[ "$FASTRES_BENCH_DEVICE" == cpu ]]; then
    mktemp -d
  else
    "$python" -c "
import re, torch
print('benchmarks/results/' + re.sub('[^a-z0-9]+', '-', torch.cuda.get_device_name().lower()).strip('-'))"
  fi
}

limited() { timeout --signal=INT --kill-after=30 570 "$@"; }

suite() { # suite RECORD FILE... [pytest arguments]
  local record="$1"
  shift
  limited "$python" -m pytest -q --benchmark-only --benchmark-columns=median,iqr,rounds --record "$record" "$@"
}

tests() {
  FASTRES_CUDA=1 "$python" setup.py --quiet build_ext --inplace || return 1
  limited "$python" -m pytest -m gpu tests "$@"
}

sanitizer() {
  local tool status=0 backends=(cuda triton)
  [[ $FASTRES_BENCH_DEVICE == cpu ]] && backends=(reference)
  PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
  command -v compute-sanitizer >/dev/null || {
    echo "compute-sanitizer: not found on PATH, nor in CUDA_HOME/bin" >&2
    return 1
  }
  # One allocation a tensor, so that a byte past its end is nobody's.
  for tool in memcheck racecheck initcheck synccheck; do
    echo "--- $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout --signal=INT --kill-after=10 140 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 --launch-timeout 0 "$python" -m fastres selftest \
      --device "$FASTRES_BENCH_DEVICE" --dtype "$dtype" --backend "${backends[@]}" \
      --match 2x64x15x17 2x48x15x17 "groups 32" projection stem head "$@" || status=1
  done
  return $status
}

stage() { # stage NAME [pytest arguments]
  local name="$1" record status
  shift
  record="$results/$(date -u +%Y-%m-%dT%H%M%S)-$name.json"
  case "$name" in
    tests) tests "$@" ;;
    selftest) limited "$python" -m fastres selftest --device "$FASTRES_BENCH_DEVICE" "$@" ;;
    sanitizer) sanitizer "$@" ;;
    ceilings) limited "$python" benchmarks/ceilings.py "$record" ;;
    layers) FASTRES_BENCH_DTYPES="$dtype" suite "$record" benchmarks/bench_conv.py benchmarks/bench_blocks.py "$@" ;;
    models) FASTRES_BENCH_DTYPES="$dtype" suite "$record" benchmarks/bench_models.py "$@" ;;
    models-fp16) FASTRES_BENCH_DTYPES=float16 suite "$record" benchmarks/bench_models.py "$@" ;;
    autotune)
      export FASTRES_BENCH_AGAINST="${FASTRES_BENCH_AGAINST:-eager-channels-last,compile-max-autotune,fastres-graph}"
      FASTRES_BENCH_DTYPES=bfloat16 suite "$record" benchmarks/bench_models.py "$@"
      ;;
    *) usage ;;
  esac
  status=$?
  [[ $status == 0 ]] || echo "stage $name failed with status $status" >&2
  if [[ -f "$record" ]]; then
    "$python" -m fastres bench --show "$record" || status=1
    echo "record: $record"
  elif [[ "$name" != tests && "$name" != selftest && "$name" != sanitizer ]]; then
    echo "stage $name left no record" >&2
    status=1
  fi
  return $status
}

[[ $# -ge 1 ]] || usage
results="$(folder)" && mkdir -p "$results" || exit 1
status=0
if [[ "$1" == all ]]; then
  shift
  for name in "${all[@]}"; do
    stage "$name" "$@" || status=1
  done
else
  stage "$@" || status=$?
fi
exit "$status"
