#!/usr/bin/env bash
# Installs what is missing for: build, test, mutations, check, clients, demo. Says what it does; does nothing where all is there.
set -euo pipefail

say() { printf 'deps: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

missing=()
want() { # want COMMAND PACKAGE
	have "$1" || missing+=("$2")
}

for purpose in "$@"; do
	case $purpose in
	build)
		want cargo rust
		want cc gcc
		want protoc protobuf-compiler
		[ -e /usr/include/google/protobuf/timestamp.proto ] || have protoc || missing+=(libprotobuf-dev)
		[ -e /usr/include/google/protobuf/timestamp.proto ] || [ -n "${PROTOC_INCLUDE:-}" ] || missing+=(libprotobuf-dev)
		;;
	test | demo)
		want etcd etcd-server
		want etcdctl etcd-client
		want kcat kcat
		want curl curl
		;;
	mutations)
		want git git
		want patch patch
		;;
	clients)
		want python3 python3
		want node nodejs
		;;
	check) ;;
	*)
		say "unknown purpose: $purpose"
		exit 2
		;;
	esac
done

[ ${#missing[@]} -eq 0 ] && exit 0

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
for package in "${missing[@]}"; do
	if [ "$package" = rust ]; then
		say "Rust is missing: install 1.95 or newer with rustup (rustup.rs), then run this again"
		exit 1
	fi
done
if ! have apt-get; then
	say "missing: ${missing[*]}. There is no apt-get here: install them in this system's own way, then run this again"
	exit 1
fi
sudo=()
if [ "$(id -u)" -ne 0 ]; then
	have sudo || { say "missing: ${missing[*]}. Run as root: apt-get install ${missing[*]}"; exit 1; }
	sudo=(sudo)
fi
say "installing with apt-get: ${missing[*]}"
"${sudo[@]}" apt-get update -qq
# Debian starts no service for these unless systemd runs; a running etcd on 2379 would be in the way of nobody here.
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
