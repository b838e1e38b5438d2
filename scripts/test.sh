#!/usr/bin/env bash
# Everything CI runs. Usage: scripts/test.sh [--full] [stage...]; stages: tidy release python cross dev tsan fuzz, and with --full mutants.
# Ends with "N passed, N failed" over all stages.
set -uo pipefail
cd "$(dirname "$0")/.."
full=0
stages=()
for word in "$@"; do
  if [ "$word" = --full ]; then full=1; else stages+=("$word"); fi
done
if [ ${#stages[@]} = 0 ]; then
  stages=(tidy release python cross dev tsan fuzz)
  [ $full = 0 ] || stages+=(mutants)
fi
passed=0
failed=0
mkdir -p build/logs

count() { # count NAME PASSED FAILED SECONDS
  passed=$((passed + $2)); failed=$((failed + $3))
  printf '%-28s %5d passed, %d failed  (%d s)\n' "$1" "$2" "$3" "$4"
  grep -hs '^not run: ' "build/logs/$1.log" || true
}

one() { # one NAME COMMAND...: a single pass or fail
  local name=$1 start=$SECONDS; shift
  if timeout -k 10 "${LIMIT_S:-1500}" "$@" >"build/logs/$name.log" 2>&1; then count "$name" 1 0 $((SECONDS - start))
  else count "$name" 0 1 $((SECONDS - start)); tail -n 25 "build/logs/$name.log"; return 1; fi
}

gtest() { emulated "" "$1-$2" "build/$1/bin/$2"; }

emulated() { # emulated RUNNER NAME PROGRAM: GoogleTest's own totals; a crash or a skip is a failure
  local name=$2 start=$SECONDS ok bad skipped code
  # shellcheck disable=SC2086
  BANTAM_FULL=$full timeout -k 10 1200 $1 "$3" >"build/logs/$name.log" 2>&1
  code=$?
  ok=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) tests\?\..*/\1/p' "build/logs/$name.log" | tail -n 1)
  bad=$(grep -c '^\[  FAILED  \].*(\([0-9]*\) ms)' "build/logs/$name.log")
  skipped=$(grep -c '^\[  SKIPPED \].*ms)' "build/logs/$name.log")
  bad=$((bad + skipped))
  [ $code -eq 0 ] || [ "$bad" -gt 0 ] || bad=1
  [ -n "$ok" ] || ok=0
  if [ "$ok" = 0 ] && [ "$bad" = 0 ]; then bad=1; fi
  count "$name" "$ok" "$bad" $((SECONDS - start))
  [ "$bad" = 0 ] || grep -B12 -m 40 -E 'FAILED|Failure|ERROR|WARNING: Thread|runtime error' "build/logs/$name.log" | head -n 60
}

script() { # script PRESET FILE: a Python test that prints its own totals as the last line
  local name="$1-$2" start=$SECONDS code last ok bad
  BANTAM_BIN=build/$1/bin BANTAM_SMOLLM2=build/models/SmolLM2-135M-Instruct.Q4_1.gguf BANTAM_FULL=$full \
    timeout -k 10 1500 build/venv/bin/python "tests/$2.py" >"build/logs/$name.log" 2>&1
  code=$?
  last=$(tail -n 1 "build/logs/$name.log")
  ok=$(sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p' <<<"$last")
  bad=$(sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p' <<<"$last")
  [ -n "$bad" ] || { ok=${ok:-0}; bad=1; }
  [ $code -eq 0 ] || [ "$bad" -gt 0 ] || bad=1
  count "$name" "$ok" "$bad" $((SECONDS - start))
  [ "$bad" = 0 ] || grep -vE '^(ok|PASS)' "build/logs/$name.log" | tail -n 30
}

programs() { sed -n 's/^bantam_test(\([a-z0-9_]*\) .*/\1/p' cmake/tests.cmake; }
build() { # build PRESET [TARGET...]
  local preset=$1; shift
  one "$preset-build" sh -c "cmake --preset $preset -DBUILD_TESTING=ON >/dev/null && cmake --build build/$preset -j 2 $*"
}

# Emulated programs are of one thread nearly all the time: both kinds at once.
emulated_arm() {
  local cpu program
  for cpu in cortex-a57 cortex-a72 cortex-a76 max; do
    for program in weights_test pack_test attend_test; do emulated "qemu-aarch64-static -cpu $cpu" "$cpu-$program" "build/aarch64/bin/$program"; done
    one "$cpu-chat" scripts/chat_check.sh "qemu-aarch64-static -cpu $cpu build/aarch64/bin/bantam" build/release/bin/bantam
  done
  # Each CPU ran the tables it is there for.
  one neon-ran grep -q 'sets: scalar neon$' build/logs/cortex-a72-weights_test.log
  one dotprod-ran grep -q 'sets: scalar neon dotprod$' build/logs/cortex-a76-weights_test.log
  one i8mm-ran grep -q 'sets: scalar neon dotprod i8mm$' build/logs/max-weights_test.log
}

emulated_x86() {
  local cpu program
  for cpu in Nehalem Haswell; do
    for program in weights_test pack_test attend_test; do emulated "qemu-x86_64-static -cpu $cpu" "$cpu-$program" "build/release/bin/$program"; done
    one "$cpu-chat" scripts/chat_check.sh "qemu-x86_64-static -cpu $cpu build/release/bin/bantam" build/release/bin/bantam
  done
  one scalar-ran grep -q 'sets: scalar$' build/logs/Nehalem-weights_test.log
  one avx2-ran grep -q 'sets: scalar scalar_fma avx2$' build/logs/Haswell-weights_test.log
}

at_once() { # at_once FUNCTION...: side by side; a function that does not come to its end is a failure
  local name counts
  trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM
  for name in "$@"; do
    rm -f "build/logs/$name.counts"
    (passed=0; failed=0; "$name"; echo "$passed $failed" >"build/logs/$name.counts") &
  done
  wait
  trap - INT TERM
  for name in "$@"; do
    read -r -a counts <"build/logs/$name.counts" || counts=(0 1)
    passed=$((passed + counts[0])); failed=$((failed + counts[1]))
  done
}

one install scripts/install_deps.sh test
export BANTAM_SMOLLM2=build/models/SmolLM2-135M-Instruct.Q4_1.gguf
for stage in "${stages[@]}"; do
  case $stage in
    tidy)
      one tidy python3 tools/tidy.py
      one tidy-self-test python3 tools/tidy.py --self-test ;;
    release)
      build release || continue
      one isa-objects python3 tools/check_isa_objects.py build/release
      for program in $(programs); do gtest release "$program"; done ;;
    python)
      for file in tests/*_test.py; do script release "$(basename "$file" .py)"; done ;;
    cross)
      # The aarch64 program and its kernels, and the x86 program on older CPUs, under qemu-user.
      build aarch64 --target bantam weights_test pack_test attend_test || continue
      one aarch64-glibc python3 tools/check_glibc.py build/aarch64/bin/bantam 2.27
      # Prime to the 22 row counts of the cases, so that each of them is met.
      export BANTAM_SAMPLE=$([ "$full" = 1 ] && echo 5 || echo 61)
      at_once emulated_arm emulated_x86
      unset BANTAM_SAMPLE ;;
    dev)
      build dev || continue
      export BANTAM_SAMPLE=1
      for program in $(programs); do gtest dev "$program"; done
      script dev server_test
      unset BANTAM_SAMPLE ;;
    tsan)
      build tsan --target engine_test threads_test shares_test pieces_test shift_test || continue
      gtest tsan threads_test
      gtest tsan shares_test
      gtest tsan pieces_test
      gtest tsan shift_test
      BANTAM_SAMPLE=1 gtest tsan engine_test ;;
    fuzz)
      targets=$(sed -n "s/^bantam_fuzz(\([a-z0-9_]*\) .*/\1/p" cmake/fuzz.cmake | tr "\n" " ")
      one fuzz-build sh -c "cmake --preset fuzz >/dev/null && cmake --build build/fuzz -j 2 --target $targets" || continue
      for target in $targets; do
        mkdir -p "build/fuzz/corpus/$target"
        [ -d "fuzz/corpus/$target" ] && cp -n fuzz/corpus/"$target"/* "build/fuzz/corpus/$target/"
        one "fuzz-$target" "build/fuzz/bin/$target" "build/fuzz/corpus/$target" -max_total_time=10 -rss_limit_mb=512 -max_len=65536
      done ;;
    mutants)
      LIMIT_S=7200 one mutants python3 tools/mutants.py ;;
    *) echo "unknown stage '$stage'"; exit 2 ;;
  esac
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
