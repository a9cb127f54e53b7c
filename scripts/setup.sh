#!/usr/bin/env bash
# Installs what Debian 12 with Rust lacks to build, demonstrate or test this project.
#
#   scripts/setup.sh [demo|test|bench]     each includes the one before it; `demo` is the default
#
# It installs Debian packages and nothing else, and asks the package sources for nothing when
# everything is there.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# A compiler for the crates that hold C (SQLite, the TLS library), the builder of images, the
# volume pool's file system, and the jail's tools.
demo=(ca-certificates gcc g++ libc6-dev make pkg-config mmdebstrap btrfs-progs util-linux mount)
# The venv of the official SDK, the virtual machine of the cgroup v2 tests and what packs its
# initial file system, peers that tests compare with, and the readers of what we generate: shells
# for the completions, groff for the manual pages, the other database, and what the pages of
# docs/user call on a machine with systemd.
tests=(python3 python3-venv qemu-system-x86 cpio xz-utils dpkg-dev git procps iproute2 zsh fish groff-base postgresql tmux umoci skopeo
    systemd busybox-static jq curl)
# Other runtimes, for a measurement beside ours.
bench=(runc)

case "${1:-demo}" in
    demo) packages=("${demo[@]}") ;;
    test) packages=("${demo[@]}" "${tests[@]}") ;;
    bench) packages=("${demo[@]}" "${tests[@]}" "${bench[@]}") ;;
    *) fail "usage: scripts/setup.sh [demo|test|bench]" ;;
esac

command -v dpkg-query >/dev/null || fail "this script knows Debian's packages only; install by hand what it lists: ${packages[*]}"

missing=()
for package in "${packages[@]}"; do
    status="$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)"
    [ "$status" = installed ] || missing+=("$package")
done

if [ "${#missing[@]}" -gt 0 ]; then
    say "missing: ${missing[*]}"
    [ "$(id -u)" = 0 ] || fail "installing packages needs root: run \`sudo scripts/setup.sh ${1:-demo}\`"
    export DEBIAN_FRONTEND=noninteractive
    # Not fatal on its own: one unreachable third-party source must not stop the others.
    say "apt-get update"
    apt-get -qq update || say "apt-get update had errors (above); going on with what it has"
    say "apt-get install"
    apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
fi

if ! command -v cargo >/dev/null; then
    fail "cargo is not on PATH: install Rust (the version is in rust-toolchain.toml) and run this again"
fi

say "ready (${1:-demo}: ${#packages[@]} packages, ${#missing[@]} installed now; $(cargo --version))"
