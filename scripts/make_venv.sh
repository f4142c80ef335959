#!/bin/sh
# Make a virtual environment: make_venv.sh FOLDER [PYTHON]
# With PYTHON, or with the first of python3.11, python3.12 and python3.13 that runs. An environment that works and has
# the version asked for stays as it is. What fails ends in one line and leaves no folder behind.
# make_venv.sh --fits FOLDER PYTHON only answers whether the environment there has the version of PYTHON.
set -eu

NAMES="python3.11 python3.12 python3.13"

fail() {
    echo "error: $1" >&2
    exit 1
}

# Version of a Python that runs, as in cpython-312 (cpython-313t without the GIL); nothing of one that does not, such as
# a shim of pyenv for a version that is not chosen.
version() {
    "$1" -c 'import sys; print(sys.implementation.cache_tag + getattr(sys, "abiflags", ""))' 2>/dev/null || true
}

is_supported() {
    case $(version "$1") in cpython-311 | cpython-312 | cpython-313) ;; *) return 1 ;; esac
}

has_venv() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

# Debian and Ubuntu have venv in a package of its own, named after the version.
explain_venv() {
    minor=$(version "$1")
    package=python3.${minor#cpython-3}-venv
    fail "$1 cannot make virtual environments; on Debian or Ubuntu: sudo apt install $package; then start again"
}

find_python() {
    first=
    for name in $NAMES; do
        is_supported "$name" || continue
        has_venv "$name" && python=$name && return
        first=${first:-$name}
    done
    [ -z "$first" ] || explain_venv "$first"
    fail "no Python 3.11, 3.12 or 3.13 here; install one, then start again:\
 sudo apt install python3.11-venv (Debian 12), python3.12-venv (Ubuntu 24.04) or python3.13-venv (Debian 13);\
 sudo dnf install python3.12 (Fedora); brew install python@3.12 or python.org (macOS); or give one: PYTHON=/path/to/python3.12"
}

check_python() {
    [ -n "$(version "$python")" ] || fail "PYTHON=$python does not run; give a Python 3.11, 3.12 or 3.13"
    is_supported "$python" || fail "PYTHON=$python is $("$python" --version 2>&1); give a Python 3.11, 3.12 or 3.13"
    has_venv "$python" || explain_venv "$python"
}

if [ "$1" = --fits ]; then
    [ "$(version "$2/bin/python")" = "$(version "$3")" ]
    exit
fi
folder=$1 python=${2:-}
if [ -n "$python" ]; then
    check_python
    [ "$(version "$folder/bin/python")" != "$(version "$python")" ] || has_pip=yes
elif is_supported "$folder/bin/python"; then
    has_pip=yes
else
    find_python
fi
# Without pip it is half-made: somebody stopped it.
if [ -n "${has_pip:-}" ] && "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi
[ -n "$python" ] || find_python
if [ -e "$folder" ] || [ -L "$folder" ]; then
    [ -e "$folder/pyvenv.cfg" ] || [ -L "$folder" ] || rmdir "$folder" 2>/dev/null ||
        fail "$folder is not a virtual environment; move it away, then start again"
    rm -rf "$folder"
fi
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
"$python" -m venv "$folder" >&2 || fail "$python could not make the virtual environment $folder, as it says above"
trap - EXIT
