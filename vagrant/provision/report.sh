#!/bin/sh
# Everything measured as one report: report.json and report.html.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
pycni-python -B "$(dirname "$0")/report.py"
