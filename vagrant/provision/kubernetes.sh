#!/bin/sh
# Kubernetes by kubeadm in place of etcd and pods of our own: control plane on the first node, kube-proxy left out where
# we serve Services, the agent as a unit of systemd with the kubelet's credentials.
# Written from the documentation of both, and NOT tried: it takes a network and minutes that tests have not (README.md).
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
[ "$PYCNI_PACKAGES" = apt ] || die "PYCNI_KUBERNETES='1': needs PYCNI_PACKAGES='apt', Debian has no kubeadm"
[ "$PYCNI_SERVICES" = systemd ] || die "PYCNI_KUBERNETES='1': needs PYCNI_SERVICES='systemd'"
version=v1.31
first=$(nodes | head -n 1)
token=pycni0.0123456789abcdef

if ! command -v kubeadm >/dev/null; then
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends containerd runc gpg curl
  install -d /etc/apt/keyrings
  curl -fsS "https://pkgs.k8s.io/core:/stable:/$version/deb/Release.key" | gpg --dearmor --yes -o /etc/apt/keyrings/kubernetes.gpg
  echo "deb [signed-by=/etc/apt/keyrings/kubernetes.gpg] https://pkgs.k8s.io/core:/stable:/$version/deb/ /" |
    put /etc/apt/sources.list.d/kubernetes.list
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends kubelet kubeadm kubectl
  apt-mark hold kubelet kubeadm kubectl
fi
install -d /etc/containerd
containerd config default | sed 's/SystemdCgroup = false/SystemdCgroup = true/; s#bin_dir = .*#bin_dir = "/opt/cni/bin"#' |
  put /etc/containerd/config.toml
service containerd /etc/containerd/config.toml "" root
swapoff -a
sed -i '/\sswap\s/d' /etc/fstab

pods=10.244.0.0/16 services=10.96.0.0/16
if [ "$PYCNI_FAMILY" = dual ]; then pods=$pods,fd00:10:244::/48 services=$services,fd00:10:96::/112; fi
if [ "$PYCNI_FAMILY" = ipv6 ]; then pods=fd00:10:244::/48 services=fd00:10:96::/112; fi
address=$PYCNI_ADDRESS api=$(address "$first")
[ "$PYCNI_FAMILY" != ipv6 ] || address=$PYCNI_ADDRESS6 api=[$(address6 "$first")]
echo "KUBELET_EXTRA_ARGS=--node-ip=$address" | put /etc/default/kubelet

if [ "$PYCNI_HOST" = "$first" ]; then
  if [ ! -e /etc/kubernetes/admin.conf ]; then
    skip=
    [ "$PYCNI_PROXY" = none ] || skip=--skip-phases=addon/kube-proxy
    # shellcheck disable=SC2086
    kubeadm init --apiserver-advertise-address "$address" --pod-network-cidr "$pods" --service-cidr "$services" \
      --token "$token" --token-ttl 0 --node-name "$PYCNI_HOST" $skip
  fi
  export KUBECONFIG=/etc/kubernetes/admin.conf
  # The agent's rights, for the credentials every kubelet has.
  kubectl apply -f "$PYCNI_SOURCE/deploy/rbac.yaml"
  kubectl create clusterrolebinding pycni-nodes --clusterrole=pycni --group=system:nodes --dry-run=client -o yaml |
    kubectl apply -f -
elif [ ! -e /etc/kubernetes/kubelet.conf ]; then
  # A network of its own, without strangers: the CA is taken from whoever answers there.
  until_ok 900 "the API server at $api" kubeadm join "$api:6443" --token "$token" --node-name "$PYCNI_HOST" \
    --discovery-token-unsafe-skip-ca-verification
fi

conf='"Network": "10.244.0.0/16"'
! ipv6 || conf="$conf, \"EnableIPv6\": true, \"IPv6Network\": \"fd00:10:244::/48\""
ipv4 || conf='"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:244::/48"'
echo "{$conf, \"Backend\": {\"Type\": \"$PYCNI_BACKEND\"}}" | put /etc/pycni/net-conf.json
components=network
[ "$PYCNI_PROXY" = none ] || components=$components,proxy
[ "$PYCNI_POLICY" = none ] || components=$components,policy
put /etc/pycni/pycnid.env 600 <<END
PYCNID_NODE_NAME="$PYCNI_HOST"
PYCNID_COMPONENTS="$components"
PYCNID_KUBE_SUBNET_MGR="true"
PYCNID_KUBECONFIG="/etc/kubernetes/kubelet.conf"
PYCNID_KUBE_API_URL="https://$api:6443"
PYCNID_NET_CONFIG_PATH="/etc/pycni/net-conf.json"
PYCNID_IFACE="$PYCNI_ADDRESS"
PYCNID_IP_MASQ="true"
PYCNID_PROXY_MODE="$([ "$PYCNI_PROXY" = none ] && echo auto || echo "$PYCNI_PROXY")"
PYCNID_POLICY="$([ "$PYCNI_POLICY" = none ] && echo nftables || echo "$PYCNI_POLICY")"
PYCNID_SERVICE_CLUSTER_IP_RANGE="$services"
PYCNID_HEALTHZ_IP="127.0.0.1"
PYCNID_HEALTHZ_PORT="8285"
END
put /etc/systemd/system/pycnid.service <"$PYCNI_SOURCE/pycni/agent/data/pycnid.service"
service pycnid "/etc/pycni/pycnid.env /etc/systemd/system/pycnid.service /etc/pycni/net-conf.json $STATE/installed" "" root
