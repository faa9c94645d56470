#!/bin/sh
# Lints proto/ with buf, and proves that gen/ is what proto/ generates. `make lint` calls it from the repository's root.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
google=$(python -c 'import google.api, pathlib; print(pathlib.Path(list(google.api.__path__)[0]).parent)')

# buf wants google/api beside our files; it comes from the googleapis-common-protos wheel, not from a schema registry.
cp -r proto buf.yaml "$work"
mkdir -p "$work/proto/google/api"
cp "$google"/api/annotations.proto "$google"/api/http.proto "$google"/api/httpbody.proto "$work/proto/google/api"
buf=$PWD/tools/node_modules/.bin/buf
(cd "$work" && "$buf" lint)
"$buf" format --diff --exit-code proto

scripts/generate.sh "$work/gen"
find gen -name __pycache__ -prune -exec rm -r {} +
diff -r "$work/gen" gen >&2 || {
  echo "gen/ is not what proto/ generates: run make proto and commit it" >&2
  exit 1
}
