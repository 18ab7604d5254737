#!/bin/sh
# bench.sh BACKEND [SECONDS [ROUNDS]]: pod to pod beside node to node, over the backend that is in use.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
pycni-python -B "$(dirname "$0")/bench.py" "${1:-$PYCNI_BACKEND}" "${2:-3}" "${3:-5}"
