#!/bin/sh
# settled.sh BACKEND: wait until every node is reached by this backend alone.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
leases() { ctl get --prefix --print-value-only /coreos.com/network/subnets/; }
# shellcheck disable=SC2317
through() {
  found=$(leases)
  [ "$(printf '%s\n' "$found" | grep -c "\"BackendType\":\"$1\"")" -eq "$(nodes | wc -l)" ] && ! printf '%s\n' "$found" | grep '"Backends"'
}
until_ok 180 "every node is reached by $1" through "$1"
until_ok 120 "the pod network is ready" health /readyz
