#!/bin/sh
# on.sh HOST COMMAND...: run a command as root on one of Vagrant's hosts. Words have to be plain.
set -eu
cd "$(dirname "$0")"
host=$1
shift
exec vagrant ssh "$host" --no-tty -c "sudo $*" </dev/null
