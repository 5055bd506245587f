#!/usr/bin/env bash
# Real clients against three brokers, each client in an environment of its own, pinned.
#
#   run.sh [CLIENT …]      confluent kafka-python aiokafka kcat kafkajs java; all of them by default
#
# 1. Every client produces with every codec, led to broker 1. Then every client that can read without a group reads
#    what every client wrote, led to broker 2 and to broker 3, and compares it byte for byte and in order.
# 2. The clients produce without a pause while every broker is asked to leave and started again, one after the other:
#    no request may fail. Then brokers are killed with -9 under the idempotent ones. Everything is read back.
#
# What cannot be had is skipped, loudly. The last line says how many passed, failed and were skipped. Environments are
# kept in ${XDG_CACHE_HOME:-~/.cache}/strandline-clients.
set -uo pipefail
cd "$(dirname "$0")" || exit

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/strandline-clients
TARGET=${CARGO_TARGET_DIR:-$(cd ../.. && pwd)/target}
BIN=$TARGET/${STRANDLINE_PROFILE:-debug}
WORK=$(mktemp -d)
RESULTS=$WORK/results
: >"$RESULTS"
mkdir -p "$CACHE" "$WORK/data" "$WORK/load" "$WORK/killed"
CLIENTS=("$@")
[ ${#CLIENTS[@]} -gt 0 ] || CLIENTS=(confluent kafka-python aiokafka kcat kafkajs java)

say() { printf '%s\n' "$*"; }
result() { say "$*" | tee -a "$RESULTS"; }

cleanup() {
	# The cluster ends when its input does.
	[ -n "${CLUSTER_IN:-}" ] && exec {CLUSTER_IN}>&-
	[ -n "${CLUSTER_PID:-}" ] && wait "$CLUSTER_PID" 2>/dev/null
	rm -rf "$WORK"
}
trap cleanup EXIT

# ---- environments

venv() { # venv NAME PACKAGE…
	local name=$1 dir=$CACHE/$1
	shift
	local wanted="$*"
	[ "$(cat "$dir/.installed" 2>/dev/null)" = "$wanted" ] && return
	say "Installing $wanted"
	rm -rf "$dir"
	python3 -m venv "$dir" && "$dir/bin/pip" install --quiet "$@" && printf '%s' "$wanted" >"$dir/.installed"
}

prepare() { # prepare CLIENT: makes sure that it is there
	case $1 in
	confluent) venv confluent confluent-kafka==2.16.1 ;;
	kafka-python) venv kafka-python kafka-python==3.0.12 python-snappy==0.7.3 lz4==4.4.5 zstandard==0.25.0 ;;
	aiokafka) venv aiokafka aiokafka==0.14.0 cramjam==2.14.0 ;;
	kcat) command -v kcat >/dev/null ;;
	kafkajs)
		local dir=$CACHE/kafkajs
		cmp -s kafkajs/package.json "$dir/package.json" && [ -e "$dir/.installed" ] && return
		command -v npm >/dev/null || return
		say "Installing kafkajs"
		rm -rf "$dir" && mkdir -p "$dir" && cp kafkajs/package.json "$dir/" &&
			(cd "$dir" && npm install --silent --no-package-lock) && touch "$dir/.installed"
		;;
	java)
		local dir=$CACHE/java
		command -v java >/dev/null && command -v mvn >/dev/null || return
		cmp -s java/pom.xml "$dir/pom.xml" && [ -e "$dir/.installed" ] && return
		say "Installing Apache Kafka's clients and tools"
		rm -rf "$dir" && mkdir -p "$dir" && cp java/pom.xml "$dir/" &&
			mvn -q -B -f "$dir/pom.xml" dependency:copy-dependencies -DoutputDirectory="$dir/jars" && touch "$dir/.installed"
		;;
	*) false ;;
	esac
}

client() { # client NAME MODE ARGUMENTS…: runs it; its results are counted
	local name=$1 mode=$2 out
	shift
	out=$WORK/out-$name-$mode-$RANDOM
	case $name in
	confluent) "$CACHE/confluent/bin/python" confluent.py "$@" ;;
	confluent-idempotent) "$CACHE/confluent/bin/python" confluent.py "$@" --idempotent ;;
	kafka-python) "$CACHE/kafka-python/bin/python" kafka_python.py "$@" ;;
	aiokafka) "$CACHE/aiokafka/bin/python" aio.py "$@" ;;
	aiokafka-idempotent) "$CACHE/aiokafka/bin/python" aio.py "$@" --idempotent ;;
	kcat) python3 kcat.py "$@" ;;
	kafkajs) NODE_PATH=$CACHE/kafkajs/node_modules node kafkajs/client.js "$@" ;;
	java) java -cp "$CACHE/java/jars/*" java/Client.java "$@" ;;
	esac >"$out" 2>&1
	local code=$?
	grep -E '^(PASS|FAIL|SKIP) ' "$out" | tee -a "$RESULTS"
	if [ $code -ne 0 ]; then result "FAIL $name $mode ended with $code"; fi
	if [ $code -ne 0 ] || grep -q '^FAIL' "$out"; then
		grep -vE '^(PASS|SKIP|FAIL) ' "$out" | cut -c1-400 | tail -n 40
	fi
}

# ---- the cluster

cluster() { # cluster COMMAND…: waits until it is done
	say "$*" >&"$CLUSTER_IN"
	local answer
	read -r -t 120 answer <&"$CLUSTER_OUT" || answer="no answer"
	[ "$answer" = ok ] || result "FAIL the cluster was told: $*: $answer"
}

for binary in strandline strandline-dev-s3 strandline-test-cluster; do
	[ -x "$BIN/$binary" ] || {
		say "$BIN/$binary is missing: run cargo build --workspace --bins first" >&2
		exit 1
	}
done
coproc CLUSTER { exec "$BIN/strandline-test-cluster" 3 --num-partitions 3 --drain-ms 2000 2>"$WORK/cluster.log"; }
CLUSTER_OUT=${CLUSTER[0]} CLUSTER_IN=${CLUSTER[1]}
read -r -t 120 READY <&"$CLUSTER_OUT" || {
	cat "$WORK/cluster.log" >&2
	say "the cluster did not start" >&2
	exit 1
}
mapfile -t BROKERS < <(grep -oE '127\.0\.0\.1:[0-9]+' <<<"$READY")
ALL=$(IFS=,; printf '%s' "${BROKERS[*]}")
say "Brokers: $ALL"

# ---- 1. every client writes, every client reads

ready=()
for name in "${CLIENTS[@]}"; do
	if prepare "$name" >"$WORK/prepare.log" 2>&1; then
		ready+=("$name")
		case $name in confluent | aiokafka) ready+=("$name-idempotent") ;; esac
	else
		tail -n 5 "$WORK/prepare.log"
		result "SKIP $name: it cannot be installed here"
	fi
done
for name in "${ready[@]}"; do client "$name" produce "${BROKERS[0]}" zone-1 "$WORK/data"; done
for name in "${ready[@]}"; do
	case $name in
	kafkajs) result "SKIP kafkajs reads: its consumer is always a member of a group, and there are no groups yet" ;;
	*-idempotent) ;;
	*)
		client "$name" verify "${BROKERS[1]}" zone-2 "$WORK/data"
		client "$name" verify "${BROKERS[2]}" zone-3 "$WORK/data"
		;;
	esac
done

# ---- the tools of Apache Kafka

console() { # console: the console producer and consumer
	local in=$WORK/console.in out=$WORK/console.out p
	for p in $(seq 1 200); do printf 'header:%d\tkey %d\tvalue %d\n' "$p" "$p" "$p"; done >"$in"
	java -cp "$CACHE/java/jars/*" org.apache.kafka.tools.ConsoleProducer --bootstrap-server "${BROKERS[0]}" --topic console \
		--property parse.key=true --property parse.headers=true <"$in" >"$WORK/console.log" 2>&1 || return
	: >"$out"
	for p in 0 1 2; do
		java -cp "$CACHE/java/jars/*" org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "${BROKERS[1]}" \
			--topic console --partition $p --offset earliest --timeout-ms 4000 \
			--property print.key=true --property print.headers=true >>"$out" 2>>"$WORK/console.log"
	done
	diff <(sort "$in") <(sort "$out") >>"$WORK/console.log"
}
if printf '%s\n' "${ready[@]}" | grep -qx java; then
	if console; then result "PASS the Java console producer and consumer"; else
		tail -n 20 "$WORK/console.log"
		result "FAIL the Java console producer and consumer"
	fi
fi

# ---- Rust's rdkafka, a crate of its own

if CARGO_TARGET_DIR="$CACHE/rdkafka" cargo build --quiet --locked --manifest-path rdkafka/Cargo.toml 2>"$WORK/rdkafka.log"; then
	if "$CACHE/rdkafka/debug/strandline-client-rdkafka" "${BROKERS[0]}" "${BROKERS[2]}" >"$WORK/rdkafka.out" 2>&1; then
		while read -r line; do result "$line"; done <"$WORK/rdkafka.out"
	else
		tail -n 20 "$WORK/rdkafka.out"
		result "FAIL rdkafka"
	fi
else
	tail -n 3 "$WORK/rdkafka.log"
	result "SKIP rdkafka: it does not build here"
fi

# ---- 2. under load

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
	for name in "${ready[@]}"; do
		case $name in
		confluent | java) client "$name" verify "${BROKERS[1]}" zone-2 "$1" ;;
		esac
	done
}
under_load=() idempotent=()
for name in "${ready[@]}"; do
	case $name in kcat) ;; *) under_load+=("$name") ;; esac
	case $name in confluent-idempotent | kafka-python | aiokafka-idempotent | java) idempotent+=("$name") ;; esac
done
if [ ${#under_load[@]} -gt 0 ]; then
	say "A rolling restart under load"
	load "$WORK/load" "${under_load[@]}"
	for i in 1 2 3; do cluster restart $i; done
	unload
	readers "$WORK/load"
fi
if [ ${#idempotent[@]} -gt 0 ]; then
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

passed=$(grep -c '^PASS' "$RESULTS")
failed=$(grep -c '^FAIL' "$RESULTS")
skipped=$(grep -c '^SKIP' "$RESULTS")
[ "$failed" -eq 0 ] || grep '^FAIL' "$RESULTS"
[ "$skipped" -eq 0 ] || grep '^SKIP' "$RESULTS"
say "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
