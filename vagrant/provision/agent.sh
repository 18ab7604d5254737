#!/bin/sh
# The agent as a service, with settings made of ours.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load

# both IPV4 IPV6: those of the families pods have, with a comma.
both() { { ! ipv4 || echo "$1"; ! ipv6 || echo "$2"; } | paste -sd, -; }

# Traces of other hosts' agents. Until there is an authority (traces.sh) this host is its own, so the agent has what it wants.
trace=/etc/pycni/trace
if [ ! -e $trace/node.key ]; then
  install -d -m 700 $trace
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=$PYCNI_HOST" \
    -keyout $trace/node.key.new -out $trace/node.crt 2>$STATE/last || die "openssl: $(cat $STATE/last)"
  cp $trace/node.crt $trace/ca.crt
  mv $trace/node.key.new $trace/node.key
fi

components=network
[ "$PYCNI_PROXY" = none ] || components=$components,proxy
[ "$PYCNI_POLICY" = none ] || components=$components,policy
[ "$PYCNI_BGP" = none ] || components=$components,bgp
{
  echo "PYCNID_NODE_NAME=\"$PYCNI_HOST\""
  echo "PYCNID_COMPONENTS=\"$components\""
  echo "PYCNID_ETCD_ENDPOINTS=\"$(endpoints)\""
  echo "PYCNID_IFACE=\"$PYCNI_ADDRESS\""
  ! ipv6 || echo "PYCNID_PUBLIC_IPV6=\"$PYCNI_ADDRESS6\""
  echo 'PYCNID_IP_MASQ="true"'
  echo 'PYCNID_HEALTHZ_IP="127.0.0.1"'
  echo 'PYCNID_HEALTHZ_PORT="8285"'
  echo 'PYCNID_TRACE_LISTEN="[::]:9475"'
  echo "PYCNID_TRACE_TLS_CERT=\"$trace/node.crt\""
  echo "PYCNID_TRACE_TLS_KEY=\"$trace/node.key\""
  echo "PYCNID_TRACE_TLS_CA=\"$trace/ca.crt\""
  if [ "$components" != network ]; then
    install -d -m 755 /etc/pycni/manifests
    echo 'PYCNID_MANIFEST_DIR="/etc/pycni/manifests"'
    echo "PYCNID_CLUSTER_CIDR=\"$(both 10.244.0.0/16 fd00:10:244::/48)\""
    echo "PYCNID_SERVICE_CLUSTER_IP_RANGE=\"$(both 10.96.0.0/16 fd00:10:96::/112)\""
    echo "PYCNID_SERVICE_EXTERNAL_IP_RANGE=\"$(both 10.99.0.0/24 fd00:10:99::/120)\""
  fi
  [ "$PYCNI_PROXY" = none ] || echo "PYCNID_PROXY_MODE=\"$PYCNI_PROXY\""
  [ "$PYCNI_POLICY" = none ] || echo "PYCNID_POLICY=\"$PYCNI_POLICY\""
  if [ "$PYCNI_BGP" != none ]; then
    echo "PYCNID_BGP_ENGINE=\"$PYCNI_BGP\""
    echo "PYCNID_PEER_ROUTER_IPS=\"$(address router)\""
    echo 'PYCNID_PEER_ROUTER_ASNS="64600"'
    echo 'PYCNID_ADVERTISE_EXTERNAL_IP="true"'
  fi
} | put /etc/pycni/pycnid.env 600

# The unit that is shipped; what is particular to these hosts is in the variables.
put /etc/systemd/system/pycnid.service <"$PYCNI_SOURCE/pycni/agent/data/pycnid.service"
service pycnid "/etc/pycni/pycnid.env /etc/systemd/system/pycnid.service $STATE/installed" /etc/pycni/pycnid.env root \
  /usr/local/bin/pycnid run
until_ok 120 "pycnid answers" health /healthz
