#!/usr/bin/env bash
# Switches etcd's authentication on, with a user for brokers and one for the observer that may only read what it needs:
# everything of the cluster but the log.
#
#   etcd-roles.sh CLUSTER          at $ETCDCTL_ENDPOINTS (default http://127.0.0.1:2379)
#
# Passwords: $ETCD_ROOT_PASSWORD, $ETCD_BROKER_PASSWORD, $ETCD_OBSERVER_PASSWORD; the defaults are those of a local demo.
# It may run again: what is there stays, and passwords are not changed.
set -euo pipefail

cluster=${1:?usage: etcd-roles.sh CLUSTER}
prefix=/strandline/$cluster
root=${ETCD_ROOT_PASSWORD:-local-dev-root}
broker=${ETCD_BROKER_PASSWORD:-local-dev-broker}
observer=${ETCD_OBSERVER_PASSWORD:-local-dev-observer}
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=${ETCDCTL_ENDPOINTS:-http://127.0.0.1:2379}

is_on() { [[ $(etcdctl get --keys-only x 2>&1 || true) == *'user name is empty'* ]]; }
# Once authentication is on, only root may do this. Passwords go by the environment and standard input, where other
# users of the machine do not see them.
if is_on; then export ETCDCTL_USER=root:$root; fi

role() { # role NAME PERMISSION FROM TO, for one range
	etcdctl role get "$1" >/dev/null 2>&1 || etcdctl role add "$1" >/dev/null
	etcdctl role grant-permission "$1" "$2" "$3" "$4" >/dev/null
}
user() { # user NAME PASSWORD ROLE
	etcdctl user get "$1" >/dev/null 2>&1 || printf '%s\n' "$2" | etcdctl user add "$1" --interactive=false >/dev/null
	etcdctl user grant-role "$1" "$3" >/dev/null
}

# A range ends before its second key: '0' comes right after '/'.
role strandline-broker readwrite "$prefix/" "${prefix}0"
# Brokers, configs, groups, … up to the log, and what lies behind it.
role strandline-observer read "$prefix/brokers/" "$prefix/log/"
role strandline-observer read "$prefix/offsets/" "$prefix/watermarks0"
user broker "$broker" strandline-broker
user observer "$observer" strandline-observer
user root "$root" root
[ -n "${ETCDCTL_USER:-}" ] || etcdctl auth enable >/dev/null
