#!/usr/bin/env bash
# Fuzzes one target, or one after the other: run.sh SECONDS [TARGET]. What is found is left in tests/fuzz/libfuzzer/artifacts,
# and belongs into the corpus with its mend: `make test` tries that. Other inputs are thrown away.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
seconds=$1
targets=${2:-requests batches compaction objects log snapshots metadata configs observer}
command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2; exit 1; }
# Beside the ordinary build, which has another compiler.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$here/../../target}/fuzz"
export ASAN_OPTIONS=${ASAN_OPTIONS:-quarantine_size_mb=8:detect_leaks=0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()
cd "$here/libfuzzer"
for target in $targets; do
	mkdir -p "$work/$target" "$here/corpus/$target"
	echo "== $target for $seconds s"
	# Bounded memory: neither all of it nor one allocation may become large, whatever an input says of itself.
	cargo +nightly fuzz run --fuzz-dir . "$target" "$work/$target" "$here/corpus/$target" -- \
		-max_total_time="$seconds" -rss_limit_mb=1024 -malloc_limit_mb=512 -timeout=30 -max_len=65536 ||
		failed+=("$target")
done
if [ ${#failed[@]} -gt 0 ]; then
	echo "found something: ${failed[*]}" >&2
	exit 1
fi
