#!/usr/bin/env bash
# How long a group takes to read everything again after a member came and after one died, here and on Apache Kafka: the
# same program, the same settings, three brokers each, one after the other.
#
#   run.sh [MEMBERS [PARTITIONS [ROUNDS]]]      100 1000 3
#
# Needs a JDK and Maven; what cannot be had is skipped, loudly.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/strandline-clients
BIN=${CARGO_TARGET_DIR:-$(cd ../.. && pwd)/target}/release
MEMBERS=${1:-100} PARTITIONS=${2:-1000} ROUNDS=${3:-3}
say() { printf '%s\n' "$*"; }
# shellcheck source=tests/clients/environments.sh disable=SC1091
source ../clients/environments.sh

maven rebalance || {
	say "SKIP rebalances: a JDK, Maven, or what Maven fetches cannot be had here"
	exit 0
}

measure() { # measure SYSTEM PROTOCOL COMMAND…: the medians, as rows of a table
	local system=$1 protocol=$2 ready brokers out input
	shift 2
	out=$(mktemp)
	coproc CLUSTER { exec "$@" 2>"$out.log"; }
	input=${CLUSTER[1]}
	# The cluster ends when its input does.
	if ! read -r -t 200 ready <&"${CLUSTER[0]}"; then
		say "SKIP rebalances on $system: it did not start"
		tail -n 3 "$out.log"
	else
		brokers=$(grep -oE '127\.0\.0\.1:[0-9]+' <<<"$ready" | paste -sd,)
		java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xmx3g -cp "$CACHE/rebalance/classes:$CACHE/rebalance/jars/*" \
			Rebalance "$brokers" "$protocol" "$MEMBERS" "$PARTITIONS" "$ROUNDS" >"$out"
		for what in arrival death; do
			grep "^$what " "$out" | cut -d' ' -f2 | sort -n | awk -v what="$what" -v where="$system" -v spoken="$protocol" \
				'{ t[NR] = $1 } END { if (NR) printf "rebalance, %s protocol, %s of a member, %s: median of %d  %.1f s  (%.1f to %.1f)\n",
					spoken, what, where, NR, t[int((NR + 1) / 2)], t[1], t[NR]; else print "FAIL no figure of " where }'
		done
	fi
	exec {input}>&-
	wait 2>/dev/null
	rm -f "$out" "$out.log"
}

for protocol in classic consumer; do
	measure Strandline $protocol "$BIN/strandline-test-cluster" 3 --group-initial-rebalance-delay-ms 500 \
		--group-consumer-session-timeout-ms 6000 --group-consumer-heartbeat-interval-ms 1000
	measure "Apache Kafka" $protocol python3 ../clients/reference/cluster.py 3 --group.initial.rebalance.delay.ms 500
done
