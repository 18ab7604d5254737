#!/bin/sh
# cluster.sh up | verify | backend NAME | bench | report PATH: what is done with hosts that are there, all together, one script of provision/ at a
# time on each. PYCNI_ON is the program that runs a command on a host, `PYCNI_ON HOST COMMAND...`; without it Vagrant's.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
: "${PYCNI_ON:=$here/on.sh}"
: "${PYCNI_SOURCE:=/srv/pycni}"
if [ -z "${PYCNI_HOSTS:-}" ]; then
  settings=$(ruby "$here/settings.rb" check)
  PYCNI_HOSTS=$(printf '%s\n' "$settings" | sed -n 's/^PYCNI_HOSTS=//p')
fi
if [ "${PYCNI_KUBERNETES:-0}" = 1 ]; then
  echo "cluster.sh: PYCNI_KUBERNETES=1: pods, Services and policies are kubectl's business there" >&2
  exit 2
fi
hosts=$(for host in $PYCNI_HOSTS; do echo "${host%%=*}"; done)
nodes=$(echo "$hosts" | grep -vx router)
first=$(echo "$nodes" | head -n 1)

# on HOST SCRIPT [ARGUMENT...]
on() {
  target=$1 script=$2
  shift 2
  "$PYCNI_ON" "$target" sh "$PYCNI_SOURCE/vagrant/provision/$script.sh" "$@"
}

# each SCRIPT [ARGUMENT...]: on all nodes at once.
each() {
  pids=
  for node in $nodes; do
    on "$node" "$@" &
    pids="$pids $!"
  done
  for pid in $pids; do wait "$pid"; done
}

up() {
  on "$first" netconf
  each pods
  each objects
  each doctor
  on "$first" traces authority
  each traces
}

verify() {
  failed=0
  for host in $hosts; do on "$host" verify || failed=1; done
  return $failed
}

# backend NAME: changed as users change it: in etcd, under running pods.
backend() {
  on "$first" netconf "$1"
  each settled "$1"
  each pods
}

# What crosses hosts, by backend; a node that is drained; what pytest bench/ says of each host's kernel.
bench() {
  for name in ${PYCNI_BENCH_BACKENDS:-vxlan host-gw wireguard}; do
    [ "$("$PYCNI_ON" "$first" grep ^PYCNI_BACKEND= /etc/pycni/hosts.env)" = "PYCNI_BACKEND='$name'" ] || backend "$name"
    on "$first" bench "$name" "${PYCNI_BENCH_SECONDS:-3}" "${PYCNI_BENCH_ROUNDS:-5}"
  done
  if [ "${PYCNI_BGP:-exabgp}" != none ] && [ "${PYCNI_PROXY:-auto}" != none ]; then
    drained "${PYCNI_BENCH_SECONDS:-3}"
  fi
  suite=${PYCNI_BENCH_SUITE-proxy policy}
  # shellcheck disable=SC2086
  # One after another: a hypervisor's hosts share its processors.
  [ -z "$suite" ] || for node in $nodes; do on "$node" suite "${PYCNI_BENCH_QUICK:-1}" $suite; done
}

# drained SECONDS: the first node's announcements go and come back, SECONDS between, while the router asks.
drained() {
  on router converge begin
  sleep "$1"
  on "$first" drain drain
  sleep "$1"
  on "$first" drain undrain
  sleep "$1"
  found=$(on router converge end | base64 -w 0)
  on "$first" bench drained "$found"
}

# report PATH: every figure, as PATH.json and PATH.html.
report() {
  on "$first" report
  for kind in json html; do
    "$PYCNI_ON" "$first" cat "/var/lib/pycni-hosts/report.$kind" >"$1.$kind"
  done
}

case ${1:-} in
  up) up ;;
  verify) verify ;;
  backend) backend "$2" ;;
  bench) bench ;;
  report) report "$2" ;;
  *) sed -n '2,3s/^# //p' "$0" >&2; exit 2 ;;
esac
