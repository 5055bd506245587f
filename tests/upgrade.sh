#!/usr/bin/env bash
# Runs brokers of an older commit beside those of this one, in both orders, under load: upgrade.sh COMMIT
# The older program is compiled in a worktree of its own, once for each commit; STRANDLINE_OLD_BINARY names one that is there.
set -euo pipefail
cd "$(dirname "$0")/.."

commit=$(git rev-parse "$1")
target=${CARGO_TARGET_DIR:-$PWD/target}
folder=$target/upgrade/$commit
if [ -z "${STRANDLINE_OLD_BINARY:-}" ]; then
	STRANDLINE_OLD_BINARY=$folder/target/debug/strandline
	if [ ! -x "$STRANDLINE_OLD_BINARY" ]; then
		[ -d "$folder/tree" ] || git worktree add --detach "$folder/tree" "$commit"
		(cd "$folder/tree" && CARGO_TARGET_DIR=$folder/target cargo build --locked -p strandline-broker --bins)
		git worktree remove --force "$folder/tree"
	fi
fi
export STRANDLINE_OLD_BINARY STRANDLINE_REQUIRE_ETCD=1
cargo test --locked --workspace --test upgrade -- --include-ignored --nocapture
