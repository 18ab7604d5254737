#!/bin/sh
# All tests, in two streams side by side, as there are two processors: each computes for a while and then mostly waits for
# networks. The first one's output comes at the end. Fails when either does.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
output=$(mktemp)
$python -m pytest -p no:cacheprovider tests/unit tests/wire tests/laws tests/k8s tests/cni tests/netns >"$output" 2>&1 &
computing=$!
trap 'kill "$computing" 2>/dev/null || true; rm -f "$output"' EXIT
trap 'exit 130' INT TERM
networks=0
$python -m pytest tests/lab tests/proxy || networks=$?
computed=0
wait "$computing" || computed=$?
cat "$output"
[ "$networks" = 0 ] && [ "$computed" = 0 ]
