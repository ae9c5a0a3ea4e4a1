#!/usr/bin/env bash
# Measures this machine's GPU: run_gpu.sh STAGE[,STAGE...] [pytest arguments], or run_gpu.sh all.
#
#   build      the native module, in place
#   tests      the tests that need a GPU, each with its parameters in a process of its own: a kernel that breaks a
#              process's hold on the GPU spoils no other test
#   selftest   every backend's cases; verifies fastres's own kernels on this GPU for 'auto'
#   sanitizer  compute-sanitizer's four tools over a short list of the same cases, on fastres's own backends
#   ceilings   memory bandwidth and matrix products
#   layers     ResNet-50's convolutions and blocks in bfloat16, batch 1, 32, 256
#   models     ResNet-50 against torchvision, torch.compile, TensorRT and cuDNN, likewise
#   models-fp16, autotune   the same in float16, and against torch.compile's max-autotune
#   training   layers, blocks and ResNet-50's steps against torchvision and torch.compile under autocast, batch 32, 256
#   latency    ResNet-50, batch 1: eager, and as CUDA graphs
#   tuning     the Triton kernels' tiles for ResNet-50; they go into the user's table, and beside the record
#   profile    ResNet-50 step by step, each fusion on and off: a record and a page
#   launches, train-launches   the kernels of ResNet-50's forward and training step and their times, batch 256
#   tiles      every tile of conv_sm90 on each of ResNet-50's convolutions
#
# A stage stands alone, ends within ten minutes, and leaves a record in benchmarks/results/<gpu>/<date>-<stage>.json,
# which is written as it goes and shown at the end; selftest, sanitizer and tuning leave what they print, as .txt,
# launches and tiles lines of JSON, as .jsonl. The exit status is 0 only if all went well.
# FASTRES_BENCH_DEVICE=cpu is a dry run on the CPU, with its records in a temporary folder. Others: settings.py; PYTHON;
# FASTRES_BENCH_RESULTS, the folder for records; FASTRES_BENCH_SECONDS, of a stage at most.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export FASTRES_BENCH_DEVICE="${FASTRES_BENCH_DEVICE:-cuda}"
python="${PYTHON:-python3}"
dtype="${FASTRES_BENCH_DTYPES:-$([[ $FASTRES_BENCH_DEVICE == cpu ]] && echo float32 || echo bfloat16)}"
all=(build tests selftest sanitizer ceilings layers models models-fp16 autotune training latency tuning profile
  launches train-launches tiles)

usage() {
  sed -n '2,24s/^# \{0,1\}//p' "$0" >&2
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

limited() { timeout --signal=INT --kill-after=10 "${FASTRES_BENCH_SECONDS:-570}" "$@"; }

suite() { # suite RECORD FILE... [pytest arguments]
  local record="$1"
  shift
  limited "$python" -m pytest --override-ini addopts= -q --benchmark-only --benchmark-columns=median,iqr,rounds --record "$record" "$@"
}

tests() {
  local logs status
  logs="$(mktemp -d)"
  "$python" -m pytest --override-ini addopts= -m gpu --collect-only -q tests "$@" | sed -n 's/^\(tests[^[ ]*::[^[ ]*\)\(\[.*\)\{0,1\}$/\1/p' |
    sort -u >"$logs/tests"
  export logs python
  # shellcheck disable=SC2016  # for the shell that xargs starts
  <"$logs/tests" limited xargs -d '\n' -P "$(nproc)" -I {} bash -c '
    log="$(mktemp "$logs/XXXXXX")"
    timeout --foreground --kill-after=10 300 "$python" -m pytest --override-ini addopts= -m gpu -q --tb=short \
      -p no:cacheprovider "$1" >"$log" 2>&1
    status=$?
    echo "$1: $(tail -n 1 "$log")"
    [[ $status == 0 ]] || { grep -E "^(E  |FAILED|ERROR)" "$log" | cut -c 1-300 | head -n 40; exit 1; }' one-test {}
  status=$?
  echo "$(wc -l <"$logs/tests") tests that need a GPU: $([[ $status == 0 ]] && echo all passed || echo not all passed)"
  return $status
}

fastres() { limited "$python" -m fastres "$@"; }

selftest() { # on a CPU without the emulator, which takes hours over it
  local type
  if [[ "$FASTRES_BENCH_DEVICE" == cpu ]]; then
    set -- --backend onednn reference "$@"
  else # Triton's compiler works by itself: first the dtypes side by side, for its cache
    for type in float32 bfloat16 float16; do
      fastres selftest --device "$FASTRES_BENCH_DEVICE" --backend triton --dtype "$type" >/dev/null 2>&1 &
    done
    wait
  fi
  fastres selftest --device "$FASTRES_BENCH_DEVICE" "$@" || return
  [[ "$FASTRES_BENCH_DEVICE" == cpu ]] ||
    cp "$("$python" -c 'from fastres.backends import verification; print(verification.local_path())')" \
      "$results/verified.table"
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

tuning() {
  fastres tune resnet50 --dtype "$dtype" "$@" || return
  cp "$("$python" -c 'from fastres import tuning; print(tuning.user_table())')" "$results/tuning.table"
}

profile() { # profile RECORD: of the first model and batch
  local record="$1" models="${FASTRES_BENCH_MODELS:-resnet50}" batches="${FASTRES_BENCH_BATCHES:-32}"
  shift
  fastres profile "${models%%,*}" --batch "${batches%%,*}" --device "$FASTRES_BENCH_DEVICE" --dtype "$dtype" \
    --rounds "${FASTRES_BENCH_ROUNDS:-15}" --seconds 400 --json "$record" --html "${record%.json}.html" "$@"
}

show() { # show RECORD, of any kind
  case "$1" in
    *-profile.json | *.jsonl) ;; # has shown itself
    *) "$python" -m fastres bench --show "$1" ;;
  esac
}

stage() { # stage NAME [pytest arguments]
  local name="$1" record status
  shift
  record="$results/$(date -u +%Y-%m-%dT%H%M%S)-$name.json"
  case "$name" in
    build) FASTRES_CUDA=1 "$python" setup.py --quiet build_ext --inplace >/dev/null ;;
    tests) tests "$@" ;;
    ceilings) limited "$python" benchmarks/ceilings.py "$record" ;;
    layers) FASTRES_BENCH_DTYPES="$dtype" suite "$record" benchmarks/bench_conv.py benchmarks/bench_blocks.py "$@" ;;
    models) FASTRES_BENCH_DTYPES="$dtype" suite "$record" benchmarks/bench_models.py "$@" ;;
    models-fp16) FASTRES_BENCH_DTYPES=float16 suite "$record" benchmarks/bench_models.py "$@" ;;
    autotune)
      export FASTRES_BENCH_AGAINST="${FASTRES_BENCH_AGAINST:-eager-channels-last,compile-max-autotune,fastres-graph}"
      FASTRES_BENCH_DTYPES=bfloat16 suite "$record" benchmarks/bench_models.py "$@"
      ;;
    training)
      export FASTRES_BENCH_BATCHES="${FASTRES_BENCH_BATCHES:-32,256}"
      FASTRES_BENCH_DTYPES="$dtype" suite "$record" benchmarks/bench_train.py "$@"
      ;;
    latency)
      export FASTRES_BENCH_AGAINST="${FASTRES_BENCH_AGAINST:-eager,eager-channels-last,eager-graph,fastres-graph}"
      FASTRES_BENCH_DTYPES="$dtype" FASTRES_BENCH_BATCHES=1 suite "$record" benchmarks/bench_models.py "$@"
      ;;
    profile) profile "$record" "$@" ;;
    launches | train-launches)
      export FASTRES_BENCH_BATCHES="${FASTRES_BENCH_BATCHES:-256}"
      [[ $name == launches ]] || set -- --train "$@"
      record="${record}l" # not one of those that `fastres bench --show` and pages.py know
      FASTRES_BENCH_DTYPES="$dtype" limited "$python" benchmarks/launches.py "$record" "$@"
      ;;
    tiles)
      record="${record}l"
      limited "$python" benchmarks/conv_sm90_tiles.py "$record" "$@"
      ;;
    selftest | sanitizer | tuning)
      "$name" "$@" 2>&1 | tee "${record%.json}.txt"
      status=${PIPESTATUS[0]}
      [[ $status == 0 ]] || echo "stage $name failed with status $status" >&2
      return "$status"
      ;;
    *) usage ;;
  esac
  status=$?
  [[ $status == 0 ]] || echo "stage $name failed with status $status" >&2
  if [[ -f "$record" ]]; then
    show "$record" || status=1
    echo "record: $record"
  elif [[ "$name" != build && "$name" != tests ]]; then
    echo "stage $name left no record" >&2
    status=1
  fi
  return $status
}

[[ $# -ge 1 ]] || usage
results="$(folder)" && mkdir -p "$results" || exit 1
status=0
stages="$1"
shift
[[ $stages == all ]] && stages="$(IFS=,; echo "${all[*]}")"
for name in ${stages//,/ }; do
  stage "$name" "$@" || status=1
done
exit "$status"
