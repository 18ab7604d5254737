#!/bin/sh
# Services and policies over the pods of all hosts, as manifests for this node's agent.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
pycni-python -B "$(dirname "$0")/pods.py" objects
