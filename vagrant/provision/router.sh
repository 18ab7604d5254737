#!/bin/sh
# The router of the fabric: FRR, with BGP to every node; one session each carries both families. And, as it is no part of the
# cluster, a server that tells by which address it sees a client.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load

{
  echo "frr defaults datacenter"
  echo "hostname router"
  echo "router bgp 64600"
  echo " bgp router-id $PYCNI_ADDRESS"
  # Without it FRR takes and tells nothing before there are policies.
  echo " no bgp ebgp-requires-policy"
  echo " no bgp default ipv4-unicast"
  echo " bgp graceful-restart"
  echo " neighbor nodes peer-group"
  echo " neighbor nodes remote-as 64512"
  echo " neighbor nodes timers connect 2"
  for name in $(nodes); do
    echo " neighbor $(address "$name") peer-group nodes"
    echo " neighbor $(address "$name") description $name"
  done
  for family in ipv4 ipv6; do
    "$family" || continue
    echo " address-family $family unicast"
    echo "  neighbor nodes activate"
    echo "  maximum-paths 16"
    echo " exit-address-family"
  done
} | put /etc/frr/frr.conf 640
chown frr:frr /etc/frr/frr.conf
vtysh -C -f /etc/frr/frr.conf || die "FRR does not take its configuration"
{
  echo "bgpd=yes"
  echo "vtysh_enable=yes"
  echo "zebra_options=\"-A 127.0.0.1 -s 90000000\""
  echo "bgpd_options=\"-A 127.0.0.1\""
  # Starting daemons and reading the configuration into them is one command, which is killed in its midst after 20 s.
  echo "watchfrr_options=\"--restart-timeout 300\""
} | put /etc/frr/daemons 640
chown frr:frr /etc/frr/daemons

# In a direct start too its own script starts the daemons and who watches over them; what stands for them stays as long.
install -d -o frr -g frr -m 755 /var/run/frr /var/log/frr
# shellcheck disable=SC2016
service frr "/etc/frr/frr.conf /etc/frr/daemons" "" root \
  sh -c '/usr/lib/frr/frrinit.sh restart; exec tail -f /dev/null --pid "$(cat /run/frr/watchfrr.pid)"'
configured() { vtysh -c "show running-config" | grep -q "neighbor nodes activate"; }
until_ok 300 "FRR has its configuration" configured

here=$(cd "$(dirname "$0")" && pwd)
put /etc/systemd/system/pycni-outside.service <<END
[Unit]
Description=tells clients by which address they are seen
After=network.target

[Service]
ExecStart=/usr/bin/python3 -ISB $here/outside.py 8081
Restart=on-failure

[Install]
WantedBy=multi-user.target
END
service pycni-outside "$here/outside.py" "" root /usr/bin/python3 -ISB "$here/outside.py" 8081
