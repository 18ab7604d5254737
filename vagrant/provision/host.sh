#!/bin/sh
# Makes this machine a host: PYCNI_HOST=router or a node. Everything is told by variables (README.md); run it again at will.
# What needs the other hosts to be up comes afterwards: ../cluster.sh.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
save
here=$(cd "$(dirname "$0")" && pwd)
[ -n "$(address "$PYCNI_HOST")" ] || die "PYCNI_HOST='$PYCNI_HOST': not in PYCNI_HOSTS='$PYCNI_HOSTS'"

run() { say "$*"; sh "$here/$1.sh"; }
run common
if [ "$PYCNI_HOST" = router ]; then
  run router
  exit
fi
run install
if [ "$PYCNI_KUBERNETES" = 1 ]; then
  run kubernetes
  exit
fi
for member in $(members); do
  [ "$member" != "$PYCNI_HOST" ] || run etcd
done
run agent
