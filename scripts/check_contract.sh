#!/bin/sh
# Lints proto/ with buf, proves that what the released version wrote can still be read, and that gen/ is what proto/
# generates. `make lint` calls it from the repository's root. `make release-contract` calls it with `release`: then it
# writes proto/released.binpb, the compiled contract that later changes are compared with. It is a file of the repository,
# so that the check needs neither the history nor a network.
set -eu
released=proto/released.binpb
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
google=$(python -c 'import google.api, pathlib; print(pathlib.Path(list(google.api.__path__)[0]).parent)')

# buf wants google/api beside our files; it comes from the googleapis-common-protos wheel, not from a schema registry.
cp -r proto buf.yaml "$work"
mkdir -p "$work/proto/google/api"
cp "$google"/api/annotations.proto "$google"/api/field_behavior.proto "$google"/api/http.proto "$google"/api/httpbody.proto "$work/proto/google/api"
buf=$PWD/tools/node_modules/.bin/buf
if [ "${1:-}" = release ]; then
  (cd "$work" && "$buf" build --exclude-source-info -o "$OLDPWD/$released")
  exit
fi
(cd "$work" && "$buf" lint)
(cd "$work" && "$buf" breaking --exclude-imports --against "$OLDPWD/$released") || {
  echo "proto/ breaks what is compatible with $released: reserve what was removed, and add beside it" >&2
  exit 1
}
"$buf" format --diff --exit-code proto

scripts/generate.sh "$work/gen"
find gen -name __pycache__ -prune -exec rm -r {} +
diff -r "$work/gen" gen >&2 || {
  echo "gen/ is not what proto/ generates: run make proto and commit it" >&2
  exit 1
}
