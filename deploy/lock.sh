#!/bin/sh
# Resolve the locks of deploy/locks again: `make lock` (or `make lock UPGRADE=1` for newer versions).
#
#   develop.txt  everything: the service, the embedded PostgreSQL, numba, tests, linters, the build backend
#   serve.txt    what `make serve` needs: the service, the embedded PostgreSQL, numba, the build backend
#   image.txt    what the container image runs: the service alone
#   build.txt    the build backend alone
#   bench.txt    what `make bench` needs: the service, the embedded PostgreSQL, clients, the plot
#   pip.txt      the pip that installs them
#   tools.txt    what this script, `make lint-docker`, `make audit` and `make sbom` run
#
# All but the last two take from develop.txt what it has, so a version is the same wherever it appears. They hold for
# every platform, from the oldest Python that pyproject.toml allows; no host is named in them.
set -eu
cd "$(dirname "$0")/.."

uv=${UV:-.venv-tools/bin/uv}
python=${PYTHON:-.venv/bin/python}
locks=deploy/locks

# uv does not read pip's configuration: hand over the index that the user has set there, if any.
index=${UV_DEFAULT_INDEX:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
if [ -n "$index" ]; then
    UV_DEFAULT_INDEX=$index
    export UV_DEFAULT_INDEX
fi

build_requires=$(mktemp)
trap 'rm -f "$build_requires"' EXIT
"$python" - >"$build_requires" <<'PYTHON'
import tomllib
from pathlib import Path

for requirement in tomllib.loads(Path("pyproject.toml").read_text())["build-system"]["requires"]:
    print(requirement)
PYTHON

compile() {
    target=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
        --no-annotate --no-emit-index-url --no-emit-find-links ${UPGRADE:+--upgrade} \
        --output-file "$locks/$target" "$@"
}

compile develop.txt pyproject.toml "$build_requires" --extra embedded --extra bulk --group dev
compile serve.txt pyproject.toml "$build_requires" --extra embedded --extra bulk --constraint "$locks/develop.txt"
compile image.txt pyproject.toml --constraint "$locks/develop.txt"
compile build.txt "$build_requires" --constraint "$locks/develop.txt"
compile bench.txt pyproject.toml "$build_requires" --extra embedded --extra bulk --group bench \
    --constraint "$locks/develop.txt"
compile tools.txt --group tools
compile pip.txt --group installer --constraint "$locks/tools.txt"

if grep -nE '://|--(index|extra-index|find-links)' "$locks"/*.txt; then
    echo "lock: a lock file names a host" >&2
    exit 1
fi
