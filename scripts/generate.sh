#!/bin/sh
# Generates gen/ from proto/. `make proto` calls it; `make lint` calls it again and expects no difference.
# Usage: scripts/generate.sh [OUT]   with the virtual environment's python first on PATH.
set -eu
out=${1:-gen}
google=$(python -c 'import google.api, pathlib; print(pathlib.Path(list(google.api.__path__)[0]).parents[1])')
rm -rf "$out/uplion"
mkdir -p "$out"
# shellcheck disable=SC2046  # our own file names hold no blanks
python -m grpc_tools.protoc -Iproto -I"$google" \
  --python_out="$out" --grpc_python_out="$out" \
  --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  $(find proto/uplion -name '*.proto' | LC_ALL=C sort)
# The admin API's OpenAPI document, which control serves: descriptions are the protos' comments.
descriptors=$(mktemp)
# shellcheck disable=SC2046
python -m grpc_tools.protoc -Iproto -I"$google" --include_imports --include_source_info --descriptor_set_out="$descriptors" \
  $(find proto/uplion -name '*.proto' | LC_ALL=C sort)
PYTHONPATH="$out:." python -m control.openapi "$descriptors" > "$out/uplion/control/v1/openapi.json"
rm "$descriptors"
# Services without RPC code and message files need no empty gRPC modules.
find "$out/uplion" -name '*_pb2_grpc.py*' ! -name '*_service_pb2_grpc.py*' -delete
