# shellcheck shell=sh
# What all scripts of this folder share; each sources it. Settings come from the environment, and what is not there from
# /etc/pycni/hosts.env, which host.sh wrote: so a script can be run again by hand, by its name alone.
set -eu

SAVED=/etc/pycni/hosts.env
STATE=/var/lib/pycni-hosts
NAMES="PYCNI_HOST PYCNI_ADDRESS PYCNI_ADDRESS6 PYCNI_HOSTS PYCNI_UNDERLAY PYCNI_UNDERLAY6 PYCNI_NODES PYCNI_FAMILY
 PYCNI_BACKEND PYCNI_ATTACHMENT PYCNI_PROXY PYCNI_POLICY PYCNI_BGP PYCNI_PODS PYCNI_KUBERNETES
 PYCNI_SOURCE PYCNI_PACKAGES PYCNI_PYTHON PYCNI_SERVICES"

say() { printf '== %s: %s\n' "${PYCNI_HOST:-?}" "$*"; }
die() { printf '== %s: %s\n' "${PYCNI_HOST:-?}" "$*" >&2; exit 1; }

load() {
  if [ -r $SAVED ]; then
    while IFS='=' read -r name value; do
      eval "[ -n \"\${$name+given}\" ] || $name=$value"
    done <$SAVED
  fi
  # Where packages come from: `apt` installs them, `present` only looks whether they are there.
  : "${PYCNI_PACKAGES:=apt}"
  # Our Python programs: `pip` makes a virtual environment of the checkout, `checkout` takes the one in it.
  : "${PYCNI_PYTHON:=pip}"
  # Who runs daemons: `systemd`, or `direct`: nobody, where there is no systemd.
  : "${PYCNI_SERVICES:=systemd}"
  : "${PYCNI_SOURCE:=$(cd "$(dirname "$0")/../.." && pwd)}"
  for name in $NAMES; do
    eval "value=\${$name-}"
    [ -n "$value" ] || die "$name is not set"
    # shellcheck disable=SC2163
    export "$name"
  done
  one_of PYCNI_PACKAGES apt present
  one_of PYCNI_PYTHON pip checkout
  one_of PYCNI_SERVICES systemd direct
  one_of PYCNI_FAMILY ipv4 ipv6 dual
  one_of PYCNI_BACKEND vxlan host-gw ipip wireguard udp bgp
  one_of PYCNI_ATTACHMENT bridge ptp
  one_of PYCNI_PROXY none auto nftables ipvs ebpf
  one_of PYCNI_POLICY none nftables ebpf
  one_of PYCNI_BGP none exabgp bird
  one_of PYCNI_KUBERNETES 0 1
}

save() {
  install -d -m 755 /etc/pycni $STATE
  for name in $NAMES; do
    eval "printf \"%s='%s'\\n\" $name \"\$$name\""
  done | put $SAVED
}

# one_of NAME VALUE...: whether a setting is one of these.
one_of() {
  name=$1
  shift
  eval "value=\$$name"
  for allowed; do
    [ "$value" != "$allowed" ] || return 0
  done
  die "$name='$value': not one of $*"
}

# put FILE [MODE]: write standard input into it, whole or not at all.
put() {
  install -d "$(dirname "$1")"
  cat >"$1.new"
  chmod "${2:-644}" "$1.new"
  mv "$1.new" "$1"
}

# until_ok SECONDS WHAT COMMAND...: try until it works.
until_ok() {
  patience=$1 what=$2
  shift 2
  end=$(($(date +%s) + patience))
  until "$@" >$STATE/last 2>&1; do
    [ "$(date +%s)" -lt "$end" ] || { cat $STATE/last >&2; die "$what: not within $patience s"; }
    sleep 1
  done
}

# The hosts: PYCNI_HOSTS is "NAME=IPV4=IPV6 ...", the router first.
nodes() { for host in $PYCNI_HOSTS; do case $host in router=*) ;; *) echo "${host%%=*}" ;; esac; done; }
address() { for host in $PYCNI_HOSTS; do [ "${host%%=*}" != "$1" ] || { host=${host#*=}; echo "${host%%=*}"; }; done; }
address6() { for host in $PYCNI_HOSTS; do [ "${host%%=*}" != "$1" ] || echo "${host##*=}"; done; }
# etcd: three members on the first three nodes, with fewer nodes one.
members() { if [ "$(nodes | wc -l)" -ge 3 ]; then nodes | head -n 3; else nodes | head -n 1; fi; }
endpoints() { for name in $(members); do printf 'http://%s:2379\n' "$(address "$name")"; done | paste -sd, -; }
ctl() { ETCDCTL_API=3 etcdctl --endpoints "$(endpoints)" --dial-timeout 5s --command-timeout 20s "$@"; }
# health PATH: whether the agent answers 200 there (/healthz: it runs, /readyz: pods can be attached).
health() {
  /usr/bin/python3 -ISB - "$1" <<'END'
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", 8285, timeout=10)
connection.request("GET", sys.argv[1])
answer = connection.getresponse()
print(answer.read().decode())
sys.exit(answer.status != 200)
END
}
ipv4() { [ "$PYCNI_FAMILY" != ipv6 ]; }
ipv6() { [ "$PYCNI_FAMILY" != ipv4 ]; }

# service UNIT FILES ENVIRONMENT USER COMMAND...: have a daemon run, from now on and after a boot. It is started anew when FILES
# (between spaces) are not those it was started with; "always" names none. systemd knows the unit and needs no more than its
# name and these. Nothing waits here: a member of etcd is up when others are.
service() {
  unit=$1 files=$2 environment=$3 user=$4
  shift 4
  # shellcheck disable=SC2086
  if [ "$files" = always ]; then now=always; else now=$(cat $files | sha256sum); fi
  action=restart
  [ "$now" = always ] || [ "$now" != "$(cat "$STATE/$unit.started" 2>/dev/null)" ] || action=start
  if [ "$PYCNI_SERVICES" = systemd ]; then
    systemctl daemon-reload
    systemctl -q enable "$unit"
    systemctl --no-block $action "$unit"
  else
    direct "$action" "$@"
  fi
  echo "$now" >"$STATE/$unit.started"
}

direct() {
  action=$1
  shift
  install -d /run/pycni-hosts /var/log/pycni
  pid=$(cat "/run/pycni-hosts/$unit.pid" 2>/dev/null || true)
  if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then
    [ "$action" = restart ] || return 0
    stop_direct "$pid"
  fi
  (
    # shellcheck disable=SC1090
    [ -z "$environment" ] || { set -a; . "$environment"; set +a; }
    [ "$user" = root ] || set -- setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
    exec setsid "$@" >>"/var/log/pycni/$unit.log" 2>&1 </dev/null
  ) &
  echo $! >"/run/pycni-hosts/$unit.pid"
}

stop_direct() {
  kill "$1" 2>/dev/null || true
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 1
  done
  kill -9 "$1" 2>/dev/null || true
}
