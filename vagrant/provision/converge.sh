#!/bin/sh
# converge.sh SECONDS: on the router, connections to the Service's external address for so long, counted.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
external=10.99.0.80
ipv4 || external=fd00:10:99::80
exec /usr/bin/python3 -B "$(dirname "$0")/converge.py" "$external" "${1:-12}"
