#!/bin/sh
# Tests that need a kernel this machine may not have, in Debian's kernel under QEMU (emulated: minutes, not in CI).
# Fetches QEMU and the kernel's package when they are missing; the kernel is unpacked below .venv, nothing is booted but it.
# `tools/qemu.sh fetch` does no more than that.
set -eu
cd "$(dirname "$0")/.."
folder=.venv/qemu
dpkg-query -W -f '${db:Status-Status}' qemu-system-x86 2>/dev/null | grep -qx installed || {
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends qemu-system-x86 qemu-system-common
}
if [ ! -e $folder/ready ]; then
  rm -rf $folder
  mkdir -p $folder/root
  package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -n 1)
  (cd $folder && apt-get download -q "$package")
  dpkg-deb -x $folder/linux-image-*.deb $folder/root
  rm $folder/linux-image-*.deb
  version=$(basename $folder/root/lib/modules/*)
  depmod -b $folder/root "$version"
  echo "$version" >$folder/ready
fi
[ "${1:-}" != fetch ] || exit 0
exec .venv/bin/python -m pytest -s "$@" tests/qemu
