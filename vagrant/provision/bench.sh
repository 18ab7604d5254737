#!/bin/sh
# bench.sh BACKEND [SECONDS [ROUNDS]]: what is paid between this node and the next, over the backend that is in use.
# bench.sh drained BASE64: what converge.sh has told.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
pycni-python -B "$(dirname "$0")/across.py" "${1:-$PYCNI_BACKEND}" "${2:-3}" "${3:-5}"
