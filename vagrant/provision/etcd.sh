#!/bin/sh
# This host's member of etcd. On a host network of its own, so without TLS: not for anything but trying things out.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load

cluster=$(for name in $(members); do printf '%s=http://%s:2380\n' "$name" "$(address "$name")"; done | paste -sd, -)
put /etc/default/etcd <<END
ETCD_NAME="$PYCNI_HOST"
ETCD_DATA_DIR="/var/lib/etcd/default"
ETCD_LISTEN_CLIENT_URLS="http://$PYCNI_ADDRESS:2379,http://127.0.0.1:2379"
ETCD_ADVERTISE_CLIENT_URLS="http://$PYCNI_ADDRESS:2379"
ETCD_LISTEN_PEER_URLS="http://$PYCNI_ADDRESS:2380"
ETCD_INITIAL_ADVERTISE_PEER_URLS="http://$PYCNI_ADDRESS:2380"
ETCD_INITIAL_CLUSTER="$cluster"
ETCD_INITIAL_CLUSTER_STATE="new"
ETCD_INITIAL_CLUSTER_TOKEN="pycni"
ETCD_AUTO_COMPACTION_RETENTION="1"
ETCD_LOGGER="zap"
END
install -d -m 700 -o etcd -g etcd /var/lib/etcd /var/lib/etcd/default
service etcd /etc/default/etcd /etc/default/etcd etcd /usr/bin/etcd
