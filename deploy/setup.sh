#!/bin/sh
# Finds what the build needs beside Rust: a C compiler (also Rust's linker), a C++20 compiler and
# libclang with its own headers, all for RocksDB, and bash for the scripts here. Installs what is missing with the system's package manager;
# where that cannot be done, names the packages and stops. Says nothing when all is there.
#
#   deploy/setup.sh            find, install
#   deploy/setup.sh --check    only find
set -u

say() { printf '%s\n' "setup: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# A compiler counts when it compiles and links. CC and CXX are what the build itself obeys.
works() { # compiler, language, flags; the program on stdin
    compiler=$1 language=$2
    shift 2
    out=$(mktemp "${TMPDIR:-/tmp}/copse-setup.XXXXXX") || return 1
    # CC and CXX may hold arguments ("ccache g++").
    # shellcheck disable=SC2086
    $compiler "$@" -x "$language" -o "$out" - >/dev/null 2>&1
    result=$?
    rm -f "$out"
    return $result
}

c_compiler() {
    works "${CC:-cc}" c <<'C'
#include <stdio.h>
int main(void) { return puts("") < 0; }
C
}

cxx20_compiler() {
    works "${CXX:-c++}" c++ -std=c++20 <<'CXX'
#include <compare>
#include <concepts>
#include <string>
struct A { int a; auto operator<=>(const A&) const = default; };
template <std::integral T> T twice(T t) { return t + t; }
int main() { std::string s("x"); return (A{1} <=> A{1}) != 0 || twice(1) != 2 || s.empty(); }
CXX
}

# The first libclang where bindgen looks for it.
libclang_path() {
    for dir in ${LIBCLANG_PATH:+"$LIBCLANG_PATH"} \
        "$(llvm-config --libdir 2>/dev/null)" \
        /usr/lib /usr/lib64 /usr/lib/*-linux-* /usr/local/lib /usr/local/lib64 \
        /usr/lib/llvm*/lib /usr/lib64/llvm*/lib /usr/lib/llvm/*/lib /usr/lib/llvm/*/lib64 \
        /usr/local/llvm*/lib /opt/rh/llvm-toolset-*/root/usr/lib64 \
        /opt/homebrew/opt/llvm/lib /usr/local/opt/llvm/lib \
        /Library/Developer/CommandLineTools/usr/lib \
        /Applications/Xcode.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib; do
        [ -n "$dir" ] || continue
        # LIBCLANG_PATH may also name the file.
        case $dir in *libclang*.so* | *libclang*.dylib) [ -f "$dir" ] && echo "$dir" && return 0 ;; esac
        for file in "$dir"/libclang.so "$dir"/libclang-[0-9]*.so "$dir"/libclang.so.* \
            "$dir"/libclang-[0-9]*.so.* "$dir"/libclang.dylib; do
            [ -f "$file" ] && echo "$file" && return 0
        done
    done
    return 1
}

# libclang alone is not enough: bindgen also needs clang's own stddef.h. Some systems ship the two
# in different packages.
libclang() {
    file=$(libclang_path) || return 1
    [ -z "${LIBCLANG_PATH:-}" ] || return 0 # whoever sets it knows what they do
    has clang && return 0
    [ -z "${BINDGEN_EXTRA_CLANG_ARGS:-}" ] || return 0
    real=$(readlink -f "$file" 2>/dev/null || echo "$file")
    for header in "$(dirname "$real")"/clang/*/include/stddef.h /usr/lib/clang/*/include/stddef.h \
        /usr/lib64/clang/*/include/stddef.h /usr/lib/llvm*/lib/clang/*/include/stddef.h; do
        [ -f "$header" ] && return 0
    done
    return 1
}

missing=
find_missing() {
    missing=
    c_compiler || missing="$missing a C compiler (${CC:-cc}),"
    cxx20_compiler || missing="$missing a C++20 compiler (${CXX:-c++}),"
    libclang || missing="$missing libclang with its headers (for bindgen),"
    has bash || missing="$missing bash (for the scripts here),"
    missing=${missing%,}
    [ -z "$missing" ]
}

if ! has cargo; then
    say "cargo was not found. Install Rust first: https://rustup.rs"
    exit 1
fi
find_missing && exit 0
say "missing:$missing"

# The packages of this system, and how to get them.
refresh=
as_root=yes
advice=
if has apt-get; then
    packages="build-essential libclang-dev"
    refresh="apt-get update -q"
    install="env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages"
elif has dnf; then
    packages="gcc gcc-c++ make clang-devel"
    install="dnf install -q -y $packages"
elif has pacman; then
    packages="base-devel clang"
    # Without -y: a new package list with old packages (a partial upgrade) breaks an Arch system.
    install="pacman -S --needed --noconfirm $packages"
    advice="If a package was not found, the package list is old: bring the system up to date first (pacman -Syu)."
elif has apk; then
    packages="bash build-base linux-headers clang-dev clang-libclang"
    install="apk add -q $packages"
elif has zypper; then
    packages="gcc gcc-c++ make clang-devel"
    install="zypper -q -n install $packages"
elif has brew; then
    packages="llvm"
    install="brew install -q $packages"
    as_root= # it refuses to run as root
else
    say "no package manager known here (apt-get, dnf, pacman, apk, zypper, brew)."
    say "Install a C compiler, a C++20 compiler (GCC 11, Clang 14 or newer), libclang with its headers and bash; then run this again."
    say "If libclang lies in an unusual place, set LIBCLANG_PATH to its directory."
    exit 1
fi

cannot() {
    say "$1"
    say "Run this${as_root:+ as root}, then try again:"
    [ -z "$refresh" ] || say "    $refresh"
    say "    $install"
    [ -z "$advice" ] || say "$advice"
    exit 1
}

[ "${1:-}" != --check ] || cannot "they can be installed as packages: $packages"

# By the package manager that was chosen: Homebrew may be there beside the system's own.
sudo=
if [ -n "$as_root" ] && [ "$(id -u)" -ne 0 ]; then
    has sudo || cannot "installing needs root, and there is no sudo."
    if sudo -n true 2>/dev/null; then
        sudo="sudo -n"
    elif [ -t 0 ] && [ -z "${CI:-}" ]; then
        say "sudo may ask for your password to install: $packages"
        sudo=sudo
    else
        cannot "installing needs root, and sudo wants a password."
    fi
fi

say "installing: $packages"
log=$(mktemp "${TMPDIR:-/tmp}/copse-setup.XXXXXX") || exit 1
trap 'rm -f "$log"' EXIT
failed() {
    tail -n 15 "$log" >&2
    cannot "that did not work: $1"
}
# An old package list still often works, so a failed refresh (one dead mirror) is not the end.
# shellcheck disable=SC2086
if [ -n "$refresh" ]; then
    $sudo $refresh >"$log" 2>&1 </dev/null || say "warning: '$refresh' failed; trying with the list there is"
fi
# shellcheck disable=SC2086
$sudo $install >>"$log" 2>&1 </dev/null || failed "$install"

if ! find_missing; then
    say "installed: $packages; still missing:$missing"
    say "Perhaps the system's compiler is too old (GCC 11 or Clang 14 is needed), or CC, CXX or LIBCLANG_PATH point elsewhere."
    exit 1
fi
say "done"
