#!/bin/sh
# Pods on this node, without Kubernetes: namespaces that get their network as a container runtime gives it, by the CNI plugin.
# Run again it makes what is missing, and tells the others anew where its pods are.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load

until_ok 240 "the pod network is ready" health /readyz
here=$(cd "$(dirname "$0")" && pwd)
pycni-python -B "$here/pods.py" add

put /etc/systemd/system/pycni-pods.service <<END
[Unit]
Description=servers in the pods of this host, and the address book of all pods
After=pycnid.service

[Service]
EnvironmentFile=/etc/pycni/hosts.env
ExecStart=/usr/local/bin/pycni-python -B $here/pods.py serve
Restart=on-failure

[Install]
WantedBy=multi-user.target
END
rm -f /run/pycni-hosts/serving
service pycni-pods always "" root /usr/local/bin/pycni-python -B "$here/pods.py" serve
until_ok 120 "the servers in the pods are up" test -e /run/pycni-hosts/serving
