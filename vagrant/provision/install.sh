#!/bin/sh
# This checkout as programs of the machine: pycnid and pycnictl, and the CNI plugin with its configuration.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load

if [ "$PYCNI_PYTHON" = pip ]; then
  # By its content: other files of ours are installed anew, and the agent starts anew with them.
  stamp=$(cd "$PYCNI_SOURCE" && find pyproject.toml pycni proxy bgp cni-bin -type f ! -name '*.pyc' -print0 |
    sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
  programs=/opt/pycni/bin
  if [ "$(cat $STATE/installed 2>/dev/null)" != "$stamp" ] || [ ! -x $programs/pycnid ]; then
    [ -x $programs/python ] || /usr/bin/python3 -m venv --system-site-packages /opt/pycni
    $programs/python -m pip install -q --disable-pip-version-check --upgrade "${PYCNI_SOURCE}[bgp,wireguard,udp]"
  fi
else
  # Somebody works in it: when the agent is to start anew is that one's business.
  stamp=checkout
  programs=$PYCNI_SOURCE/.venv/bin
  [ -x "$programs/pycnid" ] || die "PYCNI_PYTHON='checkout': there is no $programs/pycnid"
fi
install -d /usr/local/bin /opt/cni/bin /etc/cni/net.d
for name in pycnid pycnictl; do
  ln -sfn "$programs/$name" /usr/local/bin/$name
done
# Not a link: Python finds its packages by the path it is called by.
printf '#!/bin/sh\nexec %s "$@"\n' "$programs/python" | put /usr/local/bin/pycni-python 755

# The configuration we ship, with the attachment that is wanted.
sed "s/\"type\": \"pycni\",/&\n      \"attachment\": \"$PYCNI_ATTACHMENT\",/" "$PYCNI_SOURCE/cni-bin/10-pycni.conflist" |
  put $STATE/pycni.conflist
[ "$PYCNI_ATTACHMENT" = bridge ] || sed -i '/"hairpinMode"/d' $STATE/pycni.conflist
/usr/local/bin/pycnid install-cni --conflist $STATE/pycni.conflist --force
echo "$stamp" >$STATE/installed
