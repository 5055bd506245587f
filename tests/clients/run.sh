#!/usr/bin/env bash
# Real clients against three brokers, each client in an environment of its own, pinned.
#
#   run.sh [CLIENT …]      confluent kafka-python aiokafka kcat kafkajs java franz-go sarama kafka-go rdkafka tools
#                          streams connect; all of them by default
#
# 1. Every client produces with every codec, led to broker 1. Then every client reads what every client wrote, led to
#    broker 2 and to broker 3, and compares it byte for byte and in order.
# 2. Every client goes through the same scenarios (scenarios.py): groups whose members come, go and are killed, commits,
#    resets, timestamps, pausing, limits, topics, and brokers killed in the middle.
# 3. The tools of Apache Kafka, a Streams word count, a Connect worker.
# 4. The clients produce without a pause while every broker is asked to leave and started again, one after the other:
#    no request may fail. Then brokers are killed with -9 under the idempotent ones. Everything is read back.
# 5. Transactions (transactions.py), with confluent, java, franz-go, sarama and rdkafka: commit, abort, fencing, time-outs, and
#    copying exactly once while copiers or brokers are killed. Streams and Connect, exactly once, killed as well.
#
# PARTS=2 runs only the second part, PARTS="1 3" two of them. SCENARIOS="group fencing" runs only these of the second
# and the fifth, and then neither Streams nor Connect in the fifth.
# STRANDLINE_TEST_CLUSTER=reference/cluster.py runs it all against a real Apache Kafka: what passes there is what must
# pass here, and a scenario that fails there is a wrong scenario. Only the fourth part asks for more than Kafka gives, and
# is left out then: there a restart is noticed by producers without idempotence, and the answer to a batch that came
# twice has another timestamp.
#
# What cannot be had is skipped, loudly. The last line says how many passed, failed and were skipped. Environments are
# kept in ${XDG_CACHE_HOME:-~/.cache}/strandline-clients.
set -uo pipefail
cd "$(dirname "$0")" || exit

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/strandline-clients
TARGET=${CARGO_TARGET_DIR:-$(cd ../.. && pwd)/target}
BIN=$TARGET/${STRANDLINE_PROFILE:-debug}
[ -n "${STRANDLINE_TEST_CLUSTER:-}" ] && PARTS=${PARTS:-1 2 3 5}
PARTS=${PARTS:-1 2 3 4 5}
WORK=$(mktemp -d)
RESULTS=$WORK/results
: >"$RESULTS"
mkdir -p "$CACHE" "$WORK/data" "$WORK/load" "$WORK/killed"
CLIENTS=("$@")
[ ${#CLIENTS[@]} -gt 0 ] || CLIENTS=(confluent kafka-python aiokafka kcat kafkajs java franz-go sarama kafka-go rdkafka tools streams connect)
. ./environments.sh

say() { printf '%s\n' "$*"; }
result() { say "$*" | tee -a "$RESULTS"; }
part() { [[ " $PARTS " == *" $1 "* ]]; }

cleanup() {
	# The cluster ends when its input does.
	[ -n "${HOLDER:-}" ] && kill "$HOLDER" && wait "$HOLDER" 2>/dev/null
	[ -n "${CLUSTER_PID:-}" ] && wait "$CLUSTER_PID" 2>/dev/null
	rm -rf "$WORK"
}
trap cleanup EXIT

counted() { # counted WHAT OUTPUT-FILE CODE: the results that a program printed, and what else it said if it failed
	grep -E '^(PASS|FAIL|SKIP) ' "$2" | tee -a "$RESULTS"
	if [ "$3" -ne 0 ]; then result "FAIL $1 ended with $3"; fi
	if [ "$3" -ne 0 ] || grep -q '^FAIL' "$2"; then
		grep -vE '^(PASS|SKIP|FAIL|%[0-9]\|)' "$2" | cut -c1-400 | tail -n 40
	fi
}

client() { # client NAME MODE ARGUMENTS…: runs it; its results are counted
	local name=$1 mode=$2 out COMMAND
	shift
	out=$WORK/out-$name-$mode-$RANDOM
	command_of "$name"
	case $name in
	franz-go* | sarama | kafka-go) python3 through_agent.py "$@" -- "$name" "${COMMAND[@]}" ;;
	*-idempotent) "${COMMAND[@]}" "$@" --idempotent ;;
	*) "${COMMAND[@]}" "$@" ;;
	esac >"$out" 2>&1
	counted "$name $mode" "$out" $?
}

# ---- the cluster

cluster() { # cluster COMMAND…: waits until it is done
	say "$*" >"$WORK/cluster.in"
	local answer
	read -r -t 120 answer <&"$CLUSTER_OUT" || answer="no answer"
	[ "$answer" = ok ] || result "FAIL the cluster was told: $*: $answer"
}

STRANDLINE_CLUSTER_PIPES=$WORK/cluster
export STRANDLINE_CLUSTER_PIPES
mkfifo "$WORK/cluster.in" "$WORK/cluster.out"
if [ -n "${STRANDLINE_TEST_CLUSTER:-}" ]; then
	start_cluster() { exec "$STRANDLINE_TEST_CLUSTER" 3; }
else
	for binary in strandline strandline-dev-s3 strandline-test-cluster; do
		[ -x "$BIN/$binary" ] || {
			say "$BIN/$binary is missing: run cargo build --workspace --bins first" >&2
			exit 1
		}
	done
	start_cluster() { exec "$BIN/strandline-test-cluster" 3 "${SETTINGS[@]}"; }
	SETTINGS=(--num-partitions 3 --drain-ms 2000 --group-initial-rebalance-delay-ms 500)
	SETTINGS+=(--group-consumer-session-timeout-ms 6000 --group-consumer-heartbeat-interval-ms 1000)
fi
# Both ends of each pipe stay open, whoever else opens and closes them; the holder's end is the end of the cluster.
sleep infinity >"$WORK/cluster.in" &
HOLDER=$!
start_cluster <"$WORK/cluster.in" >"$WORK/cluster.out" 2>"$WORK/cluster.log" &
CLUSTER_PID=$!
exec {CLUSTER_OUT}<"$WORK/cluster.out"
read -r -t 180 READY <&"$CLUSTER_OUT" || {
	cat "$WORK/cluster.log" >&2
	say "the cluster did not start" >&2
	exit 1
}
mapfile -t BROKERS < <(grep -oE '127\.0\.0\.1:[0-9]+' <<<"$READY")
ALL=$(IFS=,; printf '%s' "${BROKERS[*]}")
say "Brokers: $ALL"

# ---- what can be had

ready=()
for name in driver "${CLIENTS[@]}"; do
	if prepare "$name" >"$WORK/prepare.log" 2>&1; then
		[ "$name" = driver ] && continue
		read -ra more <<<"$(ways_of "$name")"
		ready+=("$name" "${more[@]}")
	else
		tail -n 5 "$WORK/prepare.log"
		result "SKIP $name: IT CANNOT BE HAD HERE, SO IT IS NOT TRIED"
	fi
done
known=$(for file in scenarios.py transactions.py; do "$CACHE/driver/bin/python" $file --list; done)
for scenario in ${SCENARIOS:-}; do
	grep -qx "$scenario" <<<"$known" || result "FAIL there is no scenario $scenario"
done
is_ready() { printf '%s\n' "${ready[@]}" | grep -qx "$1"; }

# ---- 1. every client writes, every client reads

matrix=() of_scenarios=()
for name in "${ready[@]}"; do
	case $name in
	tools | streams | connect) ;;
	rdkafka) of_scenarios+=("$name") ;;
	*-848) of_scenarios+=("$name") ;;
	*-idempotent) matrix+=("$name") ;;
	*) matrix+=("$name") of_scenarios+=("$name") ;;
	esac
done
if part 1; then
	for name in "${matrix[@]}"; do client "$name" produce "${BROKERS[0]}" zone-1 "$WORK/data"; done
	for name in "${matrix[@]}"; do
		case $name in
		*-idempotent) ;;
		kafkajs | franz-go | sarama | kafka-go)
			# They read as members of a group, which takes a moment for each topic.
			client "$name" verify "${BROKERS[1]}" zone-2 "$WORK/data"
			;;
		*)
			client "$name" verify "${BROKERS[1]}" zone-2 "$WORK/data"
			client "$name" verify "${BROKERS[2]}" zone-3 "$WORK/data"
			;;
		esac
	done
	if is_ready rdkafka; then
		"$CACHE/rdkafka/debug/strandline-client-rdkafka" "${BROKERS[0]}" "${BROKERS[2]}" >"$WORK/rdkafka.out" 2>&1
		counted rdkafka "$WORK/rdkafka.out" $?
	fi
fi

# ---- 2. the scenarios

scenarios() { # scenarios FILE NAME SCENARIO…: a client goes through them; what it printed is in a file
	local file=$1 name=$2 out=$WORK/$1-$2 COMMAND
	shift 2
	command_of "$name"
	"$CACHE/driver/bin/python" "$file" "$name" "$ALL" "$@" -- "${COMMAND[@]}" >"$out" 2>&1
	counted "$name ${file%.py}" "$out" $?
}
going() { jobs -rp | grep -vxE "$HOLDER|$CLUSTER_PID"; }
all_scenarios() { # all_scenarios FILE CLIENT…: every client goes through those that are asked for
	local file=$1 name scenario
	local -a quiet=() killing=()
	for scenario in $("$CACHE/driver/bin/python" "$file" --list); do
		[[ " ${SCENARIOS:-$scenario} " == *" $scenario "* ]] || continue
		case $scenario in *-killed | *-restarted) killing+=("$scenario") ;; *) quiet+=("$scenario") ;; esac
	done
	shift
	# Three clients at a time, since they mostly wait; those that kill brokers need them for themselves.
	if [ ${#quiet[@]} -gt 0 ]; then
		for name in "$@"; do
			while [ "$(going | wc -l)" -ge 3 ]; do sleep 0.2; done
			scenarios "$file" "$name" "${quiet[@]}" &
		done
		while [ -n "$(going)" ]; do sleep 0.2; done
	fi
	if [ ${#killing[@]} -gt 0 ]; then
		for name in "$@"; do scenarios "$file" "$name" "${killing[@]}"; done
	fi
}
if part 2; then all_scenarios scenarios.py "${of_scenarios[@]}"; fi

# ---- 3. what is built on the clients

console() { # console: the console producer and consumer
	local in=$WORK/console.in out=$WORK/console.out p
	for p in $(seq 1 200); do printf 'header:%d\tkey %d\tvalue %d\n' "$p" "$p" "$p"; done >"$in"
	"${JVM[@]}" -cp "$CACHE/java/jars/*" org.apache.kafka.tools.ConsoleProducer --bootstrap-server "${BROKERS[0]}" --topic console \
		--property parse.key=true --property parse.headers=true <"$in" >"$WORK/console.log" 2>&1 || return
	: >"$out"
	for p in 0 1 2; do
		"${JVM[@]}" -cp "$CACHE/java/jars/*" org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "${BROKERS[1]}" \
			--topic console --partition $p --offset earliest --timeout-ms 4000 \
			--property print.key=true --property print.headers=true >>"$out" 2>>"$WORK/console.log"
	done
	diff <(sort "$in") <(sort "$out") >>"$WORK/console.log"
}
platform() { # platform NAME THING: what platform_java.py does with it, if it can be had
	is_ready "$1" || return
	"$CACHE/driver/bin/python" platform_java.py "$2" "$ALL" "$CACHE/java" >"$WORK/$2.out" 2>&1
	counted "$2" "$WORK/$2.out" $?
}
if part 3; then
	if is_ready tools; then
		if console; then result "PASS the Java console producer and consumer"; else
			tail -n 20 "$WORK/console.log"
			result "FAIL the Java console producer and consumer"
		fi
	fi
	for name in tools streams connect; do platform "$name" "$name"; done
fi

# ---- 4. under load

load() { # load FOLDER CLIENT…: starts them in the background
	local folder=$1 name
	shift
	rm -f "$WORK/stop"
	LOADS=()
	for name in "$@"; do
		client "$name" load "$ALL" any "$folder" "$WORK/stop" &
		LOADS+=($!)
	done
	sleep 8
}
unload() {
	sleep 3
	touch "$WORK/stop"
	wait "${LOADS[@]}"
}
readers() { # readers FOLDER
	local name
	for name in "${matrix[@]}"; do
		case $name in
		confluent | java) client "$name" verify "${BROKERS[1]}" zone-2 "$1" ;;
		esac
	done
}
under_load=() idempotent=()
for name in "${matrix[@]}"; do
	case $name in kcat) ;; *) under_load+=("$name") ;; esac
	case $name in confluent-idempotent | kafka-python | aiokafka-idempotent | java | franz-go | sarama) idempotent+=("$name") ;; esac
done
if part 4 && [ ${#under_load[@]} -gt 0 ]; then
	say "A rolling restart under load"
	load "$WORK/load" "${under_load[@]}"
	for i in 1 2 3; do cluster restart $i; done
	unload
	readers "$WORK/load"
fi
if part 4 && [ ${#idempotent[@]} -gt 0 ]; then
	say "Brokers killed under load"
	# Other topics than before, so that each is read from its beginning.
	export STRANDLINE_TOPIC_SUFFIX=-killed
	load "$WORK/killed" "${idempotent[@]}"
	for i in 1 2 3 2 1; do
		cluster kill $i
		sleep 2
	done
	unload
	readers "$WORK/killed"
fi

# ---- 5. transactions

if part 5; then
	transactional=() groups_848=()
	for name in "${of_scenarios[@]}"; do
		case $name in
		confluent | java | franz-go | sarama | rdkafka) transactional+=("$name") ;;
		confluent-848 | java-848 | franz-go-848 | rdkafka-848) groups_848+=("$name") ;;
		esac
	done
	all_scenarios transactions.py "${transactional[@]}"
	# The other protocol of groups makes a difference only where there is a group.
	if [[ " ${SCENARIOS:-exactly-once} " == *" exactly-once "* ]]; then
		SCENARIOS=exactly-once all_scenarios transactions.py "${groups_848[@]}"
	fi
	if [ -z "${SCENARIOS:-}" ]; then
		for name in streams connect; do platform "$name" "$name-exactly-once"; done
	fi
fi

# Otherwise everything after that failed for a reason that is none.
kill -0 "$CLUSTER_PID" 2>/dev/null || {
	tail -n 30 "$WORK/cluster.log"
	result "FAIL the cluster ended before its time"
}
passed=$(grep -c '^PASS' "$RESULTS")
failed=$(grep -c '^FAIL' "$RESULTS")
skipped=$(grep -c '^SKIP' "$RESULTS")
[ "$failed" -eq 0 ] || grep '^FAIL' "$RESULTS"
[ "$skipped" -eq 0 ] || grep '^SKIP' "$RESULTS"
say "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
