#!/bin/sh
# All tests. A file's stay together; three at a time on two processors, as many wait for networks much of the time. Those
# that take long come first, so that the short ones fill up the end.
set -eu
cd "$(dirname "$0")/.."
exec .venv/bin/python -m pytest -p no:cacheprovider -p no:benchmark -n "${TEST_STREAMS:-3}" --dist loadfile \
  --no-loadscope-reorder --durations 25 \
  tests/lab tests/proxy tests/netns tests/cni tests/k8s tests/laws tests/unit tests/wire
