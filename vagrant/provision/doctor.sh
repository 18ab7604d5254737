#!/bin/sh
# Switches of the kernel: sets what the doctor would set, and keeps it over a boot.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
pycnictl doctor --fix --json >$STATE/doctor.json || true
pycni-python - $STATE/doctor.json >$STATE/switches <<'END'
import json, sys
found = json.load(open(sys.argv[1]))
for change in found["fixed"]:
    print(f"{change['name']} = {change['after']}")
for item in found["findings"]:
    if item["level"] == "error":
        print(f"   {item['check']}: {item['subject']} {item['reason']}", file=sys.stderr)
END
if [ -s $STATE/switches ]; then
  { cat /etc/sysctl.d/90-pycni.conf 2>/dev/null || true; cat $STATE/switches; } | sort -u | put /etc/sysctl.d/90-pycni.conf
fi
say "$(wc -l <$STATE/switches) switches set"
