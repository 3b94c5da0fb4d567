#!/bin/sh
# Run the Python program that comes on standard input in a temporary folder, in an environment of
# its own with these packages alone:
#     sh alone.sh PACKAGE==VERSION ... <<'PYTHON'
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
python3 -m venv "$folder/venv" </dev/null
"$folder/venv/bin/pip" install --quiet "$@" </dev/null
cd "$folder"
"$folder/venv/bin/python" -
