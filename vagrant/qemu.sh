#!/bin/sh
# The hosts as QEMU guests without KVM (emulated: minutes). Fetches QEMU and Debian's kernel when they are missing.
set -eu
cd "$(dirname "$0")/.."
tools/qemu.sh fetch
exec .venv/bin/python vagrant/qemu.py "$@"
