#!/usr/bin/env bash
# What a machine with Python, g++ and make may still lack. Python.h and GoogleTest are unpacked from Debian's or Ubuntu's own packages
# into build/prerequisites (no root needed, nothing installed); clang, which runs Metal kernels on the CPU, is installed where root runs.
#   tools/prerequisites.sh python PYTHON   ends silently if PYTHON has its headers, or once they are there
#   tools/prerequisites.sh googletest
#   tools/prerequisites.sh clang
set -euo pipefail
cd "$(dirname "$0")/.."
folder=build/prerequisites

# has HEADER DIR...: the compiler finds it
has() {
  local header=$1
  shift
  echo "#include <$header>" | "${CXX:-c++}" -x c++ -std=c++17 "${@/#/-I}" -E - >/dev/null 2>&1
}
# unpack PACKAGE: its newest .deb into the folder; false where that cannot be done
unpack() {
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
  mkdir -p "$folder/deb"
  (
    cd "$folder/deb"
    apt-get download -qq "$1" 2>/dev/null || { [ "$(id -u)" = 0 ] && apt-get update -qq && apt-get download -qq "$1"; }
  ) || return 1
  dpkg -x "$folder/deb/$1"_*.deb "$folder"
}

case $1 in
  python)
    include=$("$2" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    version=$("$2" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if has Python.h "$include" || [ -e "$folder/usr/include/python$version/Python.h" ] || unpack "libpython$version-dev"; then exit 0; fi
    echo "Building needs Python's headers: install python3-dev (Debian, Ubuntu) or python3-devel (Fedora)." >&2
    ;;
  googletest)
    if has gtest/gtest.h /usr/local/include /opt/homebrew/include || [ -e "$folder/usr/include/gtest/gtest.h" ] || unpack libgtest-dev; then exit 0; fi
    echo "The C++ tests need GoogleTest: install libgtest-dev (Debian, Ubuntu), gtest-devel (Fedora) or googletest (Homebrew)." >&2
    ;;
  clang)
    for version in {24..17}; do
      if command -v "clang++-$version" >/dev/null; then exit 0; fi
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      export DEBIAN_FRONTEND=noninteractive
      if apt-get install -y -qq --no-install-recommends clang-19 >/dev/null 2>&1; then exit 0; fi
      if apt-get update -qq && apt-get install -y -qq --no-install-recommends clang-19 >/dev/null; then exit 0; fi
    fi
    echo "The Metal emulator needs clang 17 or newer: install clang-19 (Debian, Ubuntu). Its tests are skipped without." >&2
    ;;
esac
exit 1
