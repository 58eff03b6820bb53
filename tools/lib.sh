# lib.sh - what tools/quickstart and tools/test share; sourced, by bash.
# shellcheck shell=bash

# Debian's names of what each purpose needs, beyond those before it.
# shellcheck disable=SC2034 # for those who source this
{
    build_packages=(gcc libc6-dev cmake ninja-build pkg-config
        libdnnl-dev libjansson-dev libyaml-dev libxxhash-dev) # the library and the command
    test_packages=(libcriterion-dev g++ python3 clang-format locales
        libopenmpi-dev openmpi-bin) # tools/test; ranks on the CPU
    full_packages=(clang libclang-rt-14-dev libomp-dev)               # tools/test --full
    quickstart_packages=(python3 python3-venv dpkg apt)
}

say() { printf '%s\n' "$*"; }

# as_root COMMAND...
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        say "needs root or sudo: $*" >&2
        return 4
    fi
}

# need_packages PACKAGE... - installs those that are missing; says which, and touches no network when
# none is.
need_packages() {
    local package missing=()
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "no apt-get here; this needs what Debian calls: $*"
        return 0
    fi
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    say "apt-get install ${missing[*]}"
    as_root apt-get update -qq || return 4
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null || return 4
}
