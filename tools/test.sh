#!/bin/sh
# All tests. A file's stay together; three at a time on two processors, as many wait for networks much of the time. Those
# that take long come first, so that the short ones fill up the end.
#
# Packets are lost and waits run out when three streams and their networks share two processors. So up to FEW failures are
# tried once more, one after the other with nothing beside them: what fails again has failed, and both runs are printed.
set -eu
cd "$(dirname "$0")/.."
FEW=6
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
run() {
  .venv/bin/python -m pytest -o cache_dir="$cache" -p no:benchmark "$@" \
    tests/lab tests/proxy tests/netns tests/cni tests/k8s tests/laws tests/unit tests/wire
}

code=0
run -n "${TEST_STREAMS:-3}" --dist loadfile --no-loadscope-reorder --durations 25 || code=$?
[ "$code" = 1 ] || exit "$code"
left=$cache/v/pycni/left
if [ -e "$left" ]; then exit 1; fi
failed=$(grep -c '": true' "$cache/v/cache/lastfailed" || true)
if [ "$failed" -eq 0 ] || [ "$failed" -gt "$FEW" ]; then exit 1; fi
echo "$failed failed with others beside them; once more, alone:"
run --last-failed --last-failed-no-failures none -v
