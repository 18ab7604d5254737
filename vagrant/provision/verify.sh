#!/bin/sh
# What works from this host, by real packets. Exits with 1 when anything does not.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
here=$(cd "$(dirname "$0")" && pwd)

if [ "$PYCNI_HOST" != router ]; then
  pycnictl status | sed 's/^/   /'
  pycni-python -B "$here/verify.py"
  exit
fi
[ "$PYCNI_BGP" != none ] || exit 0

# The router: a session with every node, a route to every node's pods, and the Service's external address by them.
bad=0
row() { printf '%s  %-7s %-22s %s\n' "$1" "$PYCNI_HOST" "$2" "$3"; [ "$1" = "ok  " ] || bad=1; }
for family in ipv4 ipv6; do
  "$family" || continue
  short=-4 prefix=10.244. external=10.99.0.80
  [ "$family" = ipv4 ] || short=-6 prefix=fd00:10:244: external=fd00:10:99::80
  wanted=$(nodes | wc -l)
  # shellcheck disable=SC2086,SC2317
  learned() { [ "$(ip $short route show proto bgp | grep -c "^$prefix")" -ge "$wanted" ]; }
  until_ok 120 "routes to the pods of $wanted nodes" learned
  # shellcheck disable=SC2086
  row "ok  " "BGP $family" "$(ip $short route show proto bgp | grep -c "^$prefix") subnets of pods learned from $wanted nodes"
  [ "$PYCNI_PROXY" != none ] || continue
  # shellcheck disable=SC2317
  answers() { timeout 10 bash -c "exec 3<>/dev/tcp/$external/80 && head -n 1 <&3" | grep -q .; }
  until_ok 120 "the Service at $external" answers
  row "ok  " "external IP $family" "$external answers: $(timeout 10 bash -c "exec 3<>/dev/tcp/$external/80 && head -n 1 <&3")"
done
exit $bad
