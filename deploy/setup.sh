#!/bin/sh
# Make .venv from a lock: `sh deploy/setup.sh serve` or `sh deploy/setup.sh develop`; or .venv-bench or
# .venv-tools: `sh deploy/setup.sh bench`, `sh deploy/setup.sh tools`.
#
# Needs Python 3.11 to 3.14. Where Debian or Ubuntu ship it without its venv module, that is installed with
# apt. Packages come from wherever pip is configured to get them, and only with the hashes in the lock.
# $PYTHON names the interpreter to use; default: the first on PATH that will do.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

lock=${1:?usage: setup.sh serve|develop|bench|tools}
venv=.venv
case $lock in bench | tools) venv=.venv-$lock ;; esac
[ -f "deploy/locks/$lock.txt" ] || die "there is no lock deploy/locks/$lock.txt"

is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; }
can_make_venvs() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Prints the first supported Python that can make environments, else the first supported one.
find_python() {
    first=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3 python}; do
        is_supported "$candidate" || continue
        if can_make_venvs "$candidate"; then
            echo "$candidate"
            return
        fi
        first=${first:-$candidate}
    done
    echo "$first"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        return 1
    fi
}

install_venv_module() {
    package=python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
    say "$1 has no venv module: installing $package"
    command -v apt-get >/dev/null || die "$1 cannot make virtual environments; install its venv module"
    { as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
            -o Dpkg::Use-Pty=0 "$package"; } >/dev/null ||
        die "could not install $package; as root, run: apt-get install $package"
    can_make_venvs "$1" || die "$1 still cannot make virtual environments; set PYTHON to one that can"
}

make_venv() {
    python=$(find_python)
    [ -n "$python" ] || die "Python 3.11 to 3.14 is needed and was not found; install one, or set PYTHON to its path"
    can_make_venvs "$python" || install_venv_module "$python"
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
}

# An interrupted run may have left half an environment, and an upgrade of Python a dangling one.
if ! is_supported "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    make_venv
fi

# The locks are complete: nothing is left to resolve. What is installed is compiled all at once, below.
install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile "$@"
}

say "installing deploy/locks/$lock.txt"
# First a pip of our own choice: an old one, as Python 3.11 brings it, takes three times as long.
install --require-hashes --requirement deploy/locks/pip.txt
install --require-hashes --requirement "deploy/locks/$lock.txt"
# Packages bring files for other Pythons, too, which do not compile.
"$venv/bin/python" -m compileall -q -j 0 "$venv"/lib/python*/site-packages >/dev/null || :
if [ "$lock" != tools ]; then
    install --no-index --no-build-isolation --editable .
    # A service that may not write here (deploy/journal.service) would compile all of this at every start.
    "$venv/bin/python" -m compileall -q app alembic
    # Nor need any start compile what numba compiles, for this processor.
    "$venv/bin/python" -m app.service.compiled
fi
