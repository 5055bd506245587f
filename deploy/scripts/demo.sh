#!/usr/bin/env bash
# The demo platform: etcd, an S3 server, three brokers, the observer, a gentle load.
#
#   demo.sh start | status | stop
#
# With a Docker engine it runs deploy/compose.yaml; otherwise native processes, whose state is in .strandline/.
# STRANDLINE_DEMO=native (or docker) chooses; STRANDLINE_PROFILE=debug builds faster and runs slower.
set -euo pipefail
cd "$(dirname "$0")/../.."

HOME_DIR=$PWD/.strandline
RUN=$HOME_DIR/run
LOGS=$HOME_DIR/logs
DATA=$HOME_DIR/data
PROFILE=${STRANDLINE_PROFILE:-release}
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
BIN=$TARGET/$PROFILE
# Bytes. etcd before 3.6 does not say it, so brokers are told as well.
ETCD_QUOTA=2147483648

# name, port, and a URL that answers when it is healthy
SERVICES=(
	"etcd 2379 http://127.0.0.1:2379/health"
	"s3 9000 tcp"
	"broker-1 9092 http://127.0.0.1:9093/readyz"
	"broker-2 9192 http://127.0.0.1:9193/readyz"
	"broker-3 9292 http://127.0.0.1:9293/readyz"
	"observer 8090 http://127.0.0.1:8090/readyz"
	"load 0 process"
)
# Ports that belong to the platform beside the ones above.
MORE_PORTS=(2380 9093 9193 9293)

say() { printf '%s\n' "$*"; }
fail() {
	printf 'demo-platform: %s\n' "$*" >&2
	exit 1
}

docker_runs() { command -v docker >/dev/null 2>&1 && docker info >/dev/null 2>&1; }
mode() {
	case ${STRANDLINE_DEMO:-} in
	native | docker) echo "$STRANDLINE_DEMO" ;;
	*) if docker_runs; then echo docker; else echo native; fi ;;
	esac
}

# A process is ours if its pid file names a live process that was started with the command that is noted there.
alive() {
	local pid command
	[ -r "$RUN/$1" ] || return 1
	{ read -r pid && read -r command; } <"$RUN/$1" || return 1
	[ -r "/proc/$pid/cmdline" ] && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF -- "$command"
}

healthy() { # healthy NAME PORT CHECK
	alive "$1" || return 1
	case $3 in
	process) return 0 ;;
	tcp) (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null ;;
	*) curl -sf -m 2 -o /dev/null "$3" ;;
	esac
}

launch() { # launch NAME COMMAND…
	local name=$1
	shift
	if alive "$name"; then return; fi
	say "  starting $name"
	setsid "$@" >>"$LOGS/$name.log" 2>&1 </dev/null &
	printf '%s\n%s\n' "$!" "$1" >"$RUN/$name"
	disown
}

wait_healthy() { # wait_healthy NAME
	local row name port check
	for row in "${SERVICES[@]}"; do
		read -r name port check <<<"$row"
		[ "$name" = "$1" ] || continue
		for _ in $(seq 1 300); do
			healthy "$name" "$port" "$check" && return
			alive "$name" || fail "$name ended at once; its last words: $(tail -n 1 "$LOGS/$name.log" 2>/dev/null)"
			sleep 0.1
		done
		fail "$name is not healthy after 30 s; see $LOGS/$name.log"
	done
}

ports_are_free() {
	local row name port check
	for row in "${SERVICES[@]}"; do
		read -r name port check <<<"$row"
		if [ "$port" != 0 ] && ! alive "$name" && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
			fail "port $port, which $name needs, is in use by something else: stop that first"
		fi
	done
	alive broker-1 && return
	for port in "${MORE_PORTS[@]}"; do
		if ! alive etcd && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
			fail "port $port, which the platform needs, is in use by something else: stop that first"
		fi
	done
}

start_native() {
	deploy/scripts/deps.sh build demo
	mkdir -p "$RUN" "$LOGS" "$DATA"
	ports_are_free
	say "Building (the first time takes some minutes) …"
	# What the platform runs, and nothing of what tries it.
	local flags=(--locked -p strandline-broker -p strandline-mcp -p strandline-dev-s3 -p strandline-tests --bins)
	[ "$PROFILE" = release ] && flags+=(--release)
	cargo build --quiet "${flags[@]}" || fail "the build failed; its messages are above"
	say "Starting the platform; logs are in .strandline/logs"
	launch etcd etcd --data-dir "$DATA/etcd" --log-level warn --quota-backend-bytes "$ETCD_QUOTA" \
		--auto-compaction-mode periodic --auto-compaction-retention 1h \
		--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
		--listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
		--initial-cluster default=http://127.0.0.1:2380
	wait_healthy etcd
	# Brokers may write below their cluster's prefix; the observer may read what it needs of it, and not the log.
	deploy/scripts/etcd-roles.sh demo || fail "etcd's users and roles could not be made"
	# The real thing where there is one; the keys are those of a local demo and no secret.
	if command -v minio >/dev/null 2>&1; then
		mkdir -p "$DATA/minio/strandline"
		MINIO_ROOT_USER=strandline MINIO_ROOT_PASSWORD=local-dev-secret \
			launch s3 minio server --quiet --address 127.0.0.1:9000 "$DATA/minio"
	else
		launch s3 "$BIN/strandline-dev-s3" --listen 127.0.0.1:9000 --data "$DATA/s3" \
			--access-key strandline --secret-key local-dev-secret --bucket strandline
	fi
	wait_healthy s3
	local i port
	for i in 1 2 3; do
		port=$((8992 + i * 100))
		launch "broker-$i" "$BIN/strandline" --node-id "$i" --cluster demo --zone "zone-$i" \
			--listen "127.0.0.1:$port" --http-listen "127.0.0.1:$((port + 1))" \
			--etcd-endpoints http://127.0.0.1:2379 --etcd-user broker --etcd-password local-dev-broker \
			--etcd-quota-bytes "$ETCD_QUOTA" \
			--put-budget-per-s 100000 `# PUTs cost nothing here` \
			--store-url s3://strandline \
			--s3-endpoint http://127.0.0.1:9000 --s3-allow-http true \
			--s3-access-key-id strandline --s3-secret-access-key local-dev-secret
	done
	for i in 1 2 3; do wait_healthy "broker-$i"; done
	launch observer "$BIN/strandline-mcp" --listen 127.0.0.1:8090 --cluster demo --token local-dev-token \
		--etcd-endpoints http://127.0.0.1:2379 --etcd-user observer --etcd-password local-dev-observer \
		--audit-log "$LOGS/audit.jsonl"
	wait_healthy observer
	launch load "$BIN/strandline-demo-load" 127.0.0.1:9092 127.0.0.1:9192 127.0.0.1:9292
	for _ in $(seq 1 150); do
		grep -q "topics are ready" "$LOGS/load.log" 2>/dev/null && break
		alive load || fail "the load ended at once; see $LOGS/load.log"
		sleep 0.1
	done
	grep -q "topics are ready" "$LOGS/load.log" || fail "the topics were not created within 15 s; see $LOGS/load.log"
}

start_docker() {
	say "Starting the platform with Docker (deploy/compose.yaml) …"
	docker compose -f deploy/compose.yaml up --detach --build --wait || fail "docker compose failed; its messages are above"
}

announce() {
	cat <<'TEXT'

Strandline is running.
  Kafka     127.0.0.1:9092, 127.0.0.1:9192, 127.0.0.1:9292
  metrics   http://127.0.0.1:9093/metrics (9193, 9293)
  observer  http://127.0.0.1:8090/mcp with the token local-dev-token
  topics    orders (6 partitions), payments (3 partitions, retention one day)

Try:
  kcat -L -b 127.0.0.1:9092
  kcat -C -b 127.0.0.1:9192 -t orders -o -5 -e
  echo hello | kcat -P -b 127.0.0.1:9292 -t orders

make demo-status shows what is running, make demo-stop ends it.
TEXT
}

status() {
	if [ "$(mode)" = docker ]; then
		docker compose -f deploy/compose.yaml ps
		return
	fi
	local row name port check state worst=0
	for row in "${SERVICES[@]}"; do
		read -r name port check <<<"$row"
		if healthy "$name" "$port" "$check"; then state=healthy
		elif alive "$name"; then state="running, not healthy"; worst=1
		else state="not running"; worst=1; fi
		printf '  %-10s %-6s %s\n' "$name" "$([ "$port" = 0 ] && echo - || echo "$port")" "$state"
	done
	return $worst
}

stop_native() {
	local names=(load observer broker-3 broker-2 broker-1 s3 etcd) name pid
	# Brokers leave one after the other when asked to; there is nobody left to hand over to, so all at once here.
	for name in "${names[@]}"; do
		if alive "$name"; then
			read -r pid <"$RUN/$name"
			say "  stopping $name"
			kill -TERM "$pid" 2>/dev/null || true
			for _ in $(seq 1 200); do
				alive "$name" || break
				sleep 0.1
			done
			if alive "$name"; then kill -KILL "$pid" 2>/dev/null || true; fi
		fi
		rm -f "$RUN/$name"
	done
	say "Stopped. The data stays in .strandline/data; remove that folder to start from nothing."
}

case ${1:-} in
start)
	if [ "$(mode)" = docker ]; then start_docker; else start_native; fi
	announce
	;;
status) status ;;
stop)
	if [ "$(mode)" = docker ]; then docker compose -f deploy/compose.yaml down; else stop_native; fi
	;;
*)
	say "usage: demo.sh start | status | stop" >&2
	exit 2
	;;
esac
