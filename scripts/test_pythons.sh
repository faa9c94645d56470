#!/bin/sh
# Runs the unit tests on every Python from 3.11 on that this machine has: on PATH as python3.N, or installed by pyenv.
# Each gets an environment in .venvs/, pinned like .venv but without torch; the tests that import it are left out.
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
  done | sort -t ' ' -k 1,1V -k 2,2nr | awk '!seen[$1]++ { print $1 "=" $3 }'
)
[ -n "$pythons" ] || { say "no Python from 3.11 on found"; exit 1; }

failed=
for found in $pythons; do
  version=${found%%=*} folder=$PWD/.venvs/${found%%=*}
  wanted=$(cat requirements/lock.txt pyproject.toml | cksum)
  if [ "$wanted" != "$(cat "$folder/installed" 2>/dev/null)" ]; then
    say "Python $version: installing into .venvs/$version"
    "$uv" venv --quiet --clear --python "${found#*=}" "$folder"
    export VIRTUAL_ENV="$folder"
    "$uv" pip install --quiet --require-hashes -r requirements/lock.txt
    # As in setup.sh: xds-protos carries an old copy of OpenTelemetry's protos.
    "$uv" pip install --quiet --require-hashes --reinstall-package opentelemetry-proto -r requirements/lock.txt
    "$uv" pip install --quiet --no-deps --no-build-isolation --editable .
    echo "$wanted" >"$folder/installed"
  fi
  say "Python $version ($("$folder/bin/python" -V)), without torch and $torch_tests"
  "$folder/bin/python" -m pytest -q tests/unit --ignore "$torch_tests" || failed="$failed $version"
done
[ -z "$failed" ] || { say "failed on:$failed"; exit 1; }
say "passed on: $(echo "$pythons" | sed 's/=.*//' | xargs)"
