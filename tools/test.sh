#!/bin/sh
# All tests. A file's stay together; three at a time on two processors, as most wait for networks most of the time.
set -eu
cd "$(dirname "$0")/.."
exec .venv/bin/python -m pytest -p no:cacheprovider -p no:benchmark -n "${TEST_STREAMS:-3}" --dist loadfile tests
