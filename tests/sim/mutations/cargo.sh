#!/usr/bin/env bash
# Runs cargo on the product with the deliberate bugs, for example:
#
#   tests/sim/mutations/cargo.sh run --release -p strandline-sim --features mutations -- mutations
#
# The product's own code has nothing of them: the patches beside this script put them into a copy of
# the workspace, which stays below the target folder. A file of the copy is written only when its
# content changes, so that cargo compiles only what is new; and the crates of others, which both are
# built from, are compiled once.
set -euo pipefail
. "$(dirname "$0")/tree.sh"

next=$target/mutants/next
tree=$target/mutants/tree

mkdir -p "$target/mutants"
exec 9>"$target/mutants/lock"
flock 9
copy_workspace "$next"
for crate in "${crates[@]}"; do
	if ! patch --directory="$next" --strip=1 --fuzz=0 --quiet --no-backup-if-mismatch --reject-file=- <"$here/$crate.patch" >&2; then
		say "$crate.patch does not apply to the product any more: run tests/sim/mutations/refresh.sh"
		exit 1
	fi
done

# Cargo tells packages of two workspaces apart by their names and versions alone: under the product's
# version it would take what is built here for the product.
sed -i -E 's/^(version = "[^"]*)"$/\1-mutated"/' "$next/Cargo.toml"
sed -i -E '/^name = "strandline-/{n;s/^(version = "[^"]*)"$/\1-mutated"/}' "$next/Cargo.lock"

mkdir -p "$tree"
(cd "$next" && find . -type f -print0) | while IFS= read -r -d '' file; do
	if ! cmp -s "$next/$file" "$tree/$file"; then
		mkdir -p "$(dirname "$tree/$file")"
		cp "$next/$file" "$tree/$file"
	fi
done
(cd "$tree" && find . -type f -print0) | while IFS= read -r -d '' file; do
	[ -e "$next/$file" ] || rm "$tree/$file"
done
rm -rf "$next"

exec 9>&-
cd "$tree"
# Programs with bugs must not take the place of those without.
export CARGO_BUILD_BUILD_DIR=$target CARGO_TARGET_DIR=$target/mutants/target
exec cargo "$@"
