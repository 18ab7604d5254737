#!/bin/sh
# converge.sh begin | end: on the router, connections to the Service's external address one after another, counted.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
found=$STATE/converge.json
case $1 in
  begin)
    external=10.99.0.80
    ipv4 || external=fd00:10:99::80
    rm -f $found
    setsid /usr/bin/python3 -ISB "$(dirname "$0")/converge.py" "$external" $found >$STATE/converge.log 2>&1 </dev/null &
    echo $! >$STATE/converge.pid
    ;;
  end)
    kill "$(cat $STATE/converge.pid)"
    until_ok 30 "converge.py ends: $(cat $STATE/converge.log)" test -e $found
    cat $found
    ;;
esac
