#!/bin/sh
# drain.sh drain | undrain: this node's announcements of Services.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
exec pycnictl bgp "$1"
