#!/usr/bin/env bash
# Licences, sources, bans and advisories of every crate in Cargo.lock, by cargo-deny.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v cargo-deny >/dev/null 2>&1; then
	echo "supply-chain: installing cargo-deny (a few minutes, once)" >&2
	CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/tools" cargo install --quiet --locked cargo-deny
fi
cargo deny --locked --log-level error check licenses bans sources
# The database of advisories is fetched from the internet; where it cannot be reached that is said, not hidden.
if ! timeout 120 cargo deny --log-level error fetch db >/dev/null 2>&1; then
	echo "supply-chain: SKIPPED advisories: the database cannot be reached from here" >&2
	exit 0
fi
cargo deny --locked --log-level error check advisories
