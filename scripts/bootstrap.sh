#!/usr/bin/env bash
# Makes sure that the Debian packages of a build are installed: installs the missing ones where it
# may (root, or sudo without a password), otherwise prints exactly which are missing and exits 1.
#
# Usage: scripts/bootstrap.sh [build|check|test]
#   check adds what `make check` and `make fuzz` need; test installs what tests use and do without,
#   and succeeds either way: where it is missing they say that they were skipped.
set -euo pipefail

build_packages=(
  g++ cmake ninja-build pkg-config make python3 curl
  libboost1.81-dev libcli11-dev libfmt-dev libgmock-dev libgtest-dev libhwy-dev libpcre2-dev
  libsimdjson-dev libspdlog-dev libtomlplusplus-dev libutf8proc-dev libxxhash-dev libzstd-dev
  nlohmann-json3-dev pybind11-dev python3-dev zlib1g-dev
)
test_packages=(chromium)  # The status page.
check_packages=(clang-19 clang-format-19 clang-tidy-19 libclang-rt-19-dev)

packages=("${build_packages[@]}")
if [ "${1:-build}" = check ]; then
  packages+=("${check_packages[@]}")
elif [ "${1:-build}" = test ]; then
  packages=("${test_packages[@]}")
  trap 'status=$?; [ $status -eq 0 ] ||
    echo "bootstrap: going on without ${packages[*]}: tests that need it are skipped" >&2; exit 0' EXIT
fi

if ! command -v dpkg-query >/dev/null; then
  echo "bootstrap: expected Debian (dpkg-query); install the equivalents of: ${packages[*]}" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  if ! dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
    missing+=("$package")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
    echo "bootstrap: these Debian packages are missing, and there are no rights to install them:" >&2
    echo "  apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo -n)
fi

echo "bootstrap: installing ${missing[*]}" >&2
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
  --no-install-recommends "${missing[@]}" >/dev/null
