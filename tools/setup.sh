#!/bin/bash
# Makes a Debian or Ubuntu machine ready for one of the Makefile's targets:
#
#     tools/setup.sh run | test | fuzz | bench | vm | pcap-ct
#
# First the distribution's packages, those that are missing; then a virtual environment. It needs
# root for the packages alone, and takes it by sudo if it has to. What was done is noted in the
# virtual environment, so that the next time costs nothing: no package list is fetched again.
set -euo pipefail
cd "$(dirname "$0")/.."

level=${1:?"usage: tools/setup.sh run|test|fuzz|bench|vm|pcap-ct"}

# -- what each level needs ---------------------------------------------------------------------

# BCC compiles against the headers of the running kernel, which not every kernel's maker packages.
headers=linux-headers-$(uname -r)
second_kernel='/boot/vmlinuz-6.12.*+deb12-amd64'

case $(uname -m) in
    x86_64) architecture=amd64 emulator=qemu-system-x86 ;;
    aarch64) architecture=arm64 emulator=qemu-system-arm ;;
    *) architecture=$(uname -m) emulator=qemu-system-misc ;;
esac
case $(. /etc/os-release 2>/dev/null && echo "${ID:-}") in
    ubuntu) kernel=generic ;;
    *) kernel=$architecture ;;
esac

# gcc, python3-dev and libpcap-dev build pypcap; clang and libbpf-dev the BPF programs, which libbpf1
# loads. BCC is the distribution's: python3-bpfcc is visible to the distribution's own Python only,
# hence /usr/bin/python3 below, whatever PATH says.
packages_for() {
    echo gcc libc6-dev python3 python3-venv python3-dev libpcap-dev clang libbpf-dev libbpf1
    echo python3-bpfcc iproute2
    [ "$1" = run ] || echo ethtool kmod nftables procps tcpdump util-linux
    [ "$1" != bench ] || echo iperf3 nethogs python3-matplotlib
    [ "$1" != vm ] || echo "$emulator" busybox-static file linux-{image,headers}-"$kernel"
}

python=/usr/bin/python3
venv=.venv
extras='[test]'
lower=()  # what is ready too when this level is
case $level in
    run) extras= ;;
    test) lower=(run) ;;
    fuzz) extras='[test,fuzz]' lower=(run test) ;;
    bench | vm) lower=(run test) ;;
    pcap-ct) venv=.venv-pcap-ct ;;
    *) echo "tools/setup.sh: no such level: $level" >&2; exit 2 ;;
esac
mapfile -t packages < <(packages_for "$level" | tr ' ' '\n')

# -- helpers -----------------------------------------------------------------------------------

say() { echo "procnet set-up: $*"; }
fail() { echo "procnet set-up: $*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "needs root for: $* (become root, or install sudo)"
    fi
}

is_installed() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}

# The newest of them, with its headers.
has_second_kernel() {
    local image
    image=$(compgen -G "$second_kernel" | sort -V | tail -n 1)
    [ -n "$image" ] && [ -e "/lib/modules/${image#/boot/vmlinuz-}/build" ]
}

# -- the distribution's packages ---------------------------------------------------------------

install_packages() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        [ "${PROCNET_PACKAGES:-}" = present ] && return
        say "this is neither Debian nor Ubuntu; install what corresponds to these packages:" >&2
        echo "    ${packages[*]} $headers" >&2
        fail "then call make again with PROCNET_PACKAGES=present"
    fi
    local missing=() package
    for package in "${packages[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    # Debian 12 packages a second kernel, under a name of its own for each version.
    local want_second=
    if [ "$level" = vm ] && [ "$kernel" = amd64 ] && ! has_second_kernel; then
        want_second=yes
    fi
    local want_headers=
    if ! is_installed "$headers" && [ ! -e "/lib/modules/$(uname -r)/build" ] &&
        [ "$(cat .venv/.procnet-sought 2>/dev/null)" != "$headers" ]; then
        want_headers=yes
    fi
    if [ ${#missing[@]} = 0 ] && [ -z "$want_headers$want_second" ]; then
        return
    fi
    say "fetching the lists of packages"
    apt update
    if [ -n "$want_second" ]; then
        local newest
        newest=$(apt-cache search --names-only '^linux-image-6\.12\.[0-9]+\+deb12-amd64$' |
            cut -d ' ' -f 1 | sort -V | tail -n 1)
        [ -n "$newest" ] || fail "no package linux-image-6.12.*+deb12-amd64 for the virtual machine"
        missing+=("$newest" "${newest/image/headers}")
    fi
    if [ -n "$want_headers" ]; then
        if apt-cache show "$headers" >/dev/null 2>&1; then
            missing+=("$headers")
        else
            say "no package has the headers of this kernel ($headers): procnet goes without kernel" \
                "probes here, and learns who owns a socket by looking"
        fi
    fi
    if [ ${#missing[@]} -gt 0 ]; then
        say "installing packages: ${missing[*]}"
        apt install -y --no-install-recommends "${missing[@]}"
    fi
}

# -- the virtual environment -------------------------------------------------------------------

# pcap-ct takes pypcap's place from Python 3.12 on. A pyenv shim of that name may be there and only
# say that it is not, so a candidate has to run.
find_new_python() {
    local candidate
    for candidate in python3.13 python3.12 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13.*/bin/python3.13 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12.*/bin/python3.12; do
        if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "pcap-ct is tried with Python 3.12 or 3.13, and there is none on PATH or in pyenv"
}

# What `pip install` will look for, read from setup.cfg, to be said beforehand.
requirements() {
    "$1" - "$extras" <<'PYTHON'
import configparser, re, sys
config = configparser.ConfigParser()
config.read("setup.cfg")
lines = config["options"]["install_requires"].splitlines()
for extra in re.findall(r"\w+", sys.argv[1]):
    lines += config["options.extras_require"][extra].splitlines()
old = sys.version_info < (3, 12)
wanted = [line.split(";")[0] for line in lines if line and not line.startswith("#")
          if ";" not in line or ('< "3.12"' in line) == old]
print(*(re.split("[<>=]", each)[0].strip() for each in wanted))
PYTHON
}

install_python() {
    local options=(--system-site-packages)
    if [ "$level" = pcap-ct ]; then
        python=$(find_new_python)
        options=()
    fi
    if ! "$venv/bin/python" -c pass 2>/dev/null; then
        say "making a virtual environment in $venv with $("$python" --version)"
        "$python" -m venv --clear "${options[@]}" "$venv"
    fi
    say "installing into $venv: $(requirements "$venv/bin/python")"
    env -u PYTHONPATH PIP_USE_PEP517=1 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
        PIP_ROOT_USER_ACTION=ignore \
        "$venv/bin/python" -m pip install --quiet --editable ".$extras"
}

# -- once --------------------------------------------------------------------------------------

# What a level's set-up depends on. It is noted when done, and compared the next time.
state_of() {
    { packages_for "$1"; echo "$headers"; "$venv/bin/python" --version
      cat setup.cfg setup.py tools/setup.sh; } 2>/dev/null | sha256sum
}

if [ -x "$venv/bin/procnet" ] &&
    [ "$(cat "$venv/.procnet-$level" 2>/dev/null)" = "$(state_of "$level")" ]; then
    exit 0
fi
install_packages
install_python
[ ! -d .venv ] || echo "$headers" >.venv/.procnet-sought
for each in "${lower[@]}" "$level"; do
    state_of "$each" >"$venv/.procnet-$each"
done
say "ready"
