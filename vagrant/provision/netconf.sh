#!/bin/sh
# netconf.sh [BACKEND]: the network's configuration into etcd, as flannel has it. Agents follow it when it changes.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
PYCNI_BACKEND=${1:-$PYCNI_BACKEND}
one_of PYCNI_BACKEND vxlan host-gw ipip wireguard udp bgp

conf=
! ipv4 || conf='"Network": "10.244.0.0/16", "SubnetLen": 24'
ipv4 || conf='"EnableIPv4": false'
! ipv6 || conf="$conf, \"EnableIPv6\": true, \"IPv6Network\": \"fd00:10:244::/48\", \"IPv6SubnetLen\": 64"
until_ok 300 "etcd at $(endpoints)" ctl endpoint health
ctl put /coreos.com/network/config "{$conf, \"Backend\": {\"Type\": \"$PYCNI_BACKEND\"}}" >/dev/null
save
say "backend $PYCNI_BACKEND, $PYCNI_FAMILY"
