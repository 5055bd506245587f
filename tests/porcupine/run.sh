#!/usr/bin/env bash
# Simulates clusters, and has porcupine (https://github.com/anishathalye/porcupine) check what their clients were told.
#
#   run.sh SIMULATION [SEEDS]     the built strandline-sim, and how many seeds (default 200)
set -euo pipefail
simulation=$(realpath "${1:?usage: run.sh SIMULATION [SEEDS]}")
seeds=${2:-200}
cd "$(dirname "$0")"
command -v go >/dev/null || { echo 'a Go toolchain is needed' >&2; exit 1; }
work=$(mktemp -d)
export GOTOOLCHAIN=local GOFLAGS=-mod=readonly
go test ./... >"$work/tests.txt" || { cat "$work/tests.txt"; exit 1; }
go build -buildvcs=false -o "$work/porcupine" .
for ((seed = 0; seed < seeds; seed++)); do
	"$simulation" history "$seed" >"$work/$seed.jsonl"
done
if "$work/porcupine" "$work"/*.jsonl >"$work/verdict.txt"; then
	echo "$seeds seeds, $(cat "$work"/*.jsonl | wc -l) operations: all linearizable"
	rm -r "$work"
else
	grep -v ', linearizable$' "$work/verdict.txt"
	echo "everything is kept in $work"
	exit 1
fi
