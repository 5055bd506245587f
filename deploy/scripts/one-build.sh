#!/usr/bin/env bash
# Fails if `make demo-platform` would compile the brokers again after `make build`: cargo builds a crate once for each set
# of features, and the platform's other programs must not ask for more of the crates that they share with the brokers.
set -euo pipefail
cd "$(dirname "$0")/../.."

# The crates that these packages are built from, with their features.
built_from() {
	cargo tree --locked "$@" --edges normal,build --prefix none --format '{p} [{f}]' | sed 's/ (\*)$//' | sort -u
}

product=$(built_from -p strandline-broker -p strandline-mcp)
platform=$(built_from -p strandline-broker -p strandline-mcp -p strandline-dev-s3 -p strandline-tests)
again=$(comm -23 <(echo "$product") <(echo "$platform"))
if [ -n "$again" ]; then
	printf 'one-build: the platform asks for other features of these crates:\n%s\n' "$again" >&2
	exit 1
fi
