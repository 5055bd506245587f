#!/usr/bin/env bash
# Brings the patches up to date with the product:
#
#   tests/sim/mutations/refresh.sh            merges them into a copy of the workspace; writes them
#   tests/sim/mutations/refresh.sh continue   writes them, once conflicts in the copy are resolved
#
# The copy is below the target folder. To change a deliberate bug, or to add one, edit it there and
# continue.
set -euo pipefail
. "$(dirname "$0")/tree.sh"

copy=$target/mutants/refresh
in_copy() { git -C "$copy" -c core.abbrev=12 -c user.name=refresh -c user.email=refresh@localhost "$@"; }

case ${1:-} in
'')
	copy_workspace "$copy"
	in_copy init -q
	# The merge needs the files that the patches were made from.
	echo "$(git -C "$root" rev-parse --path-format=absolute --git-common-dir)/objects" \
		>"$copy/.git/objects/info/alternates"
	in_copy add --all --force
	in_copy commit -q --no-verify --message "the product"
	resolved=true
	for crate in "${crates[@]}"; do
		in_copy apply --3way "$here/$crate.patch" && continue
		resolved=false
		if in_copy diff --quiet HEAD -- "$crate"; then
			say "the files that $crate.patch was made from are not in this clone: what does not apply is in files *.rej"
			in_copy apply --reject "$here/$crate.patch" || true
		fi
	done
	if ! $resolved; then
		say "resolve the conflicts in $copy, and run: tests/sim/mutations/refresh.sh continue"
		exit 1
	fi
	;;
continue)
	if [ ! -d "$copy/.git" ]; then
		say "there is nothing to continue: run tests/sim/mutations/refresh.sh first"
		exit 1
	fi
	if in_copy grep -n -E '^(<<<<<<<|>>>>>>>) ' -- "${crates[@]}"; then
		say "resolve these conflicts in $copy first"
		exit 1
	fi
	find "$copy" -name '*.rej' -delete
	;;
*)
	say "usage: refresh.sh [continue]"
	exit 2
	;;
esac

for crate in "${crates[@]}"; do
	in_copy add --all --force -- "$crate"
	in_copy diff --cached --no-color --no-ext-diff --src-prefix=a/ --dst-prefix=b/ HEAD -- "$crate" \
		>"$here/$crate.patch"
done
say "the patches are written"
