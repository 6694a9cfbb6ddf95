# SPDX-License-Identifier: Apache-2.0
# What quickstart, test and python_env share: messages with the time, packages, libtorch, the build. Sourced, not run.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
started=$SECONDS

say() { printf '[%4ds] %s\n' $((SECONDS - started)) "$*"; }
fail() {
  printf '%s\n' "$2" >&2
  exit "$1"
}

readonly packages=(g++ cmake ninja-build git python3-venv libeigen3-dev libhdf5-dev libfmt-dev libcli11-dev
  libgtest-dev nlohmann-json3-dev libtomlplusplus-dev)

# Installs the missing Debian or Ubuntu packages; without root it prints the line that does, and ends with 3.
install_packages() {
  if ! command -v dpkg-query >/dev/null; then
    say "packages: this is not Debian or Ubuntu; needed are the equivalents of ${packages[*]}"
    return
  fi
  local missing=() package
  for package in "${packages[@]}"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then
    say "packages: all there"
    return
  fi
  if ((EUID != 0)); then
    fail 3 "These packages are missing. Install them and run this again:
    sudo apt-get install -y ${missing[*]}"
  fi
  say "packages: installing ${missing[*]} (about 15 s)"
  local log
  log=$(mktemp)
  if ! { DEBIAN_FRONTEND=noninteractive apt-get update -q &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail 3 "apt-get could not install ${missing[*]}; its whole output is in $log"
  fi
  rm -f "$log"
}

# libtorch from where the user points, else from the local Python environment.
prepare_torch() {
  if [[ -n ${SINKSCOPE_TORCH:-} ]]; then
    [[ -e $SINKSCOPE_TORCH/lib/libtorch_cpu.so || -e $SINKSCOPE_TORCH/torch/lib/libtorch_cpu.so ]] ||
      fail 3 "SINKSCOPE_TORCH is $SINKSCOPE_TORCH, wanted a folder with lib/libtorch_cpu.so"
    say "libtorch: $SINKSCOPE_TORCH (SINKSCOPE_TORCH)"
    return
  fi
  local prefix
  local IFS=:
  for prefix in ${CMAKE_PREFIX_PATH:-}; do
    if [[ -e $prefix/lib/libtorch_cpu.so ]]; then
      say "libtorch: $prefix (CMAKE_PREFIX_PATH)"
      return
    fi
  done
  unset IFS
  tools/python_env
}

# configure PRESET [SETTING ...]: makes the build's folder ready, with these -D settings.
configure() {
  say "build: configuring preset $1"
  local log preset=$1
  log=$(mktemp)
  shift
  cmake --preset "$preset" "$@" >"$log" 2>&1 || {
    cat "$log" >&2
    fail 3 "cmake could not configure the build"
  }
  grep -h -E -- '-- (libtorch|CUDA backend)' "$log" || true
  rm -f "$log"
}

# compile PRESET [TARGET ...]: with ninja's own progress.
compile() {
  say "build: compiling (one to three minutes on 2 cores the first time)"
  local preset=$1
  shift
  NINJA_STATUS='[%f/%t, %es] ' cmake --build --preset "$preset" ${1:+--target "$@"}
}

# build PRESET [TARGET ...]: both.
build() {
  configure "$1"
  compile "$@"
}
