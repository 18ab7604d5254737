#!/bin/sh
# suite.sh QUICK NAME...: bench/test_NAME.py on this host, of those that need nothing beside its kernel; QUICK is 1 or 0.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
export BENCH_QUICK="$1"
shift
files=$(for name; do echo "bench/test_$name.py"; done)
here=$(cd "$(dirname "$0")" && pwd)
cd "$PYCNI_SOURCE"
# shellcheck disable=SC2086
for file in $files; do [ -e "$file" ] || die "PYCNI_BENCH_SUITE: there is no $file"; done
[ "$PYCNI_PYTHON" = checkout ] ||
  pycni-python -m pip install -q --disable-pip-version-check hypothesis matplotlib pytest pytest-benchmark pytest-timeout
say "pytest bench/: $*"
# shellcheck disable=SC2086
# What this host cannot do, as eBPF without a compiler, the report tells as broken.
pycni-python -B -m pytest -q -p no:cacheprovider --report $STATE/suite $files || [ $? = 1 ]
pycni-python -B "$here/report.py" suite $STATE/suite.json
