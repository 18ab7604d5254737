#!/bin/sh
# traces.sh [authority]: certificates by which the agents of all hosts ask each other for traces. The first node has the authority,
# whose key stays there: `authority` makes it. Then each node asks for its certificate through etcd, and has the agent take it.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
load
trace=/etc/pycni/trace book=/pycni-hosts-traces
cd $trace
first=$(nodes | head -n 1)

if [ "${1:-}" = authority ]; then
  if [ ! -e authority.key ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=pycni traces" \
      -keyout authority.key.new -out authority.crt 2>$STATE/last || die "openssl: $(cat $STATE/last)"
    mv authority.key.new authority.key
  fi
  ctl put $book/authority <authority.crt >/dev/null
  exit
fi

# fetch KEY FILE
# shellcheck disable=SC2317
fetch() { ctl get --print-value-only "$book/$1" >"$2" && [ -s "$2" ]; }
openssl req -new -key node.key -subj "/CN=$PYCNI_HOST" | ctl put "$book/asked/$PYCNI_HOST" >/dev/null

# What a certificate says is what this node knows of a host, not what is asked for.
if [ "$PYCNI_HOST" = "$first" ]; then
  for node in $(nodes); do
    until_ok 240 "$node asks for its certificate" fetch "asked/$node" "$node.csr"
    printf 'basicConstraints=CA:FALSE\nsubjectAltName=DNS:%s,IP:%s,IP:%s\n' "$node" "$(address "$node")" "$(address6 "$node")" |
      put $trace/node.ext
    openssl x509 -req -in "$node.csr" -CA authority.crt -CAkey authority.key -days 3650 -extfile node.ext -out "$node.crt" \
      2>$STATE/last || die "openssl: $(cat $STATE/last)"
    ctl put "$book/signed/$node" <"$node.crt" >/dev/null
  done
fi

# An older certificate may be there still: of another authority, for another key.
# shellcheck disable=SC2317
signed() {
  fetch authority ca.crt.new && fetch "signed/$PYCNI_HOST" node.crt.new &&
    openssl verify -CAfile ca.crt.new node.crt.new &&
    [ "$(openssl x509 -in node.crt.new -noout -pubkey)" = "$(openssl pkey -in node.key -pubout)" ]
}
until_ok 240 "this node's certificate is signed" signed
mv ca.crt.new ca.crt
mv node.crt.new node.crt
