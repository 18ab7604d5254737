#!/bin/sh
# Install what the lab and the tests need: Debian packages, then .venv over the system Python
# (the nftables bindings are a Debian package). Does nothing, quickly, when everything is there.
set -eu
cd "$(dirname "$0")/.."

APT="ca-certificates make python3 python3-venv python3-nftables nftables iproute2 iptables util-linux procps openssl
 etcd-server etcd-client containerd runc podman containernetworking-plugins iperf3 sockperf
 busybox-static conntrack ethtool user-mode-linux kmod ipvsadm ipset dnsmasq-base python3-bpfcc linux-headers-cloud-amd64
 bird2 frr gobgpd chromium prometheus wireguard-go wireguard-tools python3-cryptography socat zsh fish
 shellcheck systemd vagrant vagrant-libvirt"

stamp=.venv/.setup-$( { echo "$APT"; cat pyproject.toml tools/setup.sh; } | sha256sum | cut -c1-16)
[ -e "$stamp" ] && exit 0

step() { printf '\033[1m==> %s\033[0m\n' "$*"; }
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo

missing=
for package in $APT; do
  dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
if [ -n "$missing" ]; then
  step "apt:$missing"
  # Packages must not start their services here: a policy of our own says no while they are installed.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
    $sudo chmod 755 $policy
    trap '$sudo rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  $sudo apt-get update -q
  # shellcheck disable=SC2086
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fi

step "python: .venv with the project's dependencies"
[ -x .venv/bin/python ] || /usr/bin/python3 -m venv --system-site-packages .venv
.venv/bin/python - <<'PY' > .venv/requirements.txt
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
print(*project["project"]["dependencies"], *project["dependency-groups"]["dev"], sep="\n")
PY
.venv/bin/python -m pip install --quiet --requirement .venv/requirements.txt
.venv/bin/python -m pip install --quiet --no-deps --editable .
rm -f .venv/.setup-*
: > "$stamp"
step "ready"
