#!/bin/sh
# Packages, kernel modules, switches and the IPv6 address of the underlay.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load

packages="iproute2 kmod procps"
if [ "$PYCNI_HOST" = router ]; then
  packages="$packages frr python3"
else
  packages="$packages ca-certificates python3 python3-venv python3-nftables nftables iptables ipset ipvsadm conntrack
    ethtool openssl etcd-client iperf3 sockperf"
  [ "$PYCNI_KUBERNETES" = 1 ] || ! members | grep -qx "$PYCNI_HOST" || packages="$packages etcd-server"
  [ "$PYCNI_BGP" != bird ] || packages="$packages bird2"
  [ "$PYCNI_BACKEND" != wireguard ] || packages="$packages wireguard-tools"
  # Kernel headers are for the kernel that runs.
  [ "$PYCNI_PROXY$PYCNI_POLICY" = "${PYCNI_PROXY#ebpf}${PYCNI_POLICY#ebpf}" ] ||
    packages="$packages python3-bpfcc linux-headers-$(uname -r)"
fi

# shellcheck disable=SC2086
there=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' $packages 2>/dev/null || true)
missing=
for package in $packages; do
  printf '%s\n' "$there" | grep -qx "$package installed" || missing="$missing $package"
done
if [ -n "$missing" ]; then
  [ "$PYCNI_PACKAGES" = apt ] || case $missing in
    " linux-headers-"*) say "no$missing, so eBPF takes the headers in /usr/src" ;;
    *) die "not installed:$missing" ;;
  esac
  if [ "$PYCNI_PACKAGES" = apt ]; then
    # Daemons are started when they are configured, not by being unpacked.
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    apt-get update -q
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
  fi
fi

# Modules that nothing loads by itself, or that are wanted before somebody asks. A kernel with one built in has none.
modules="br_netfilter nf_conntrack"
case $PYCNI_PROXY in auto | ipvs) modules="$modules ip_vs ip_vs_rr dummy" ;; esac
case $PYCNI_BACKEND in vxlan | ipip | wireguard) modules="$modules $PYCNI_BACKEND" ;; udp) modules="$modules tun" ;; esac
[ "$PYCNI_HOST" != router ] || modules=
for module in $modules; do
  modprobe -q "$module" 2>/dev/null || say "no module $module for this kernel"
done
echo "$modules" | tr ' ' '\n' | put /etc/modules-load.d/pycni.conf

# What `pycnictl doctor --fix` sets where an agent is needs no agent to be known on a router.
[ "$PYCNI_HOST" != router ] || {
  printf 'net.ipv4.ip_forward=1\nnet.ipv6.conf.all.forwarding=1\nnet.ipv4.fib_multipath_hash_policy=1\n' |
    put /etc/sysctl.d/90-pycni.conf
  sysctl -q -p /etc/sysctl.d/90-pycni.conf
}

# Vagrant and others give hosts IPv4 addresses; the IPv6 address goes onto the same device, now and after a boot.
device=$(ip -o -4 address show to "$PYCNI_ADDRESS" | awk 'NR == 1 {print $2}')
[ -n "$device" ] || die "PYCNI_ADDRESS='$PYCNI_ADDRESS': no device here has this address"
put /usr/local/sbin/pycni-address 755 <<END
#!/bin/sh
ip -6 address replace $PYCNI_ADDRESS6/64 dev $device nodad
END
/usr/local/sbin/pycni-address
if [ "$PYCNI_SERVICES" = systemd ]; then
  put /etc/systemd/system/pycni-address.service <<END
[Unit]
Description=IPv6 address of the underlay
After=network-online.target
Wants=network-online.target
Before=pycnid.service frr.service

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/pycni-address

[Install]
WantedBy=multi-user.target
END
  systemctl daemon-reload
  systemctl -q enable pycni-address.service
fi
