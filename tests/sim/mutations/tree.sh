# What cargo.sh and refresh.sh have in common. To be sourced.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
# One patch for each.
crates=(metadata broker)

say() { printf 'mutations: %s\n' "$*" >&2; }

# Copies the workspace as it is, with what is not committed yet, into an empty folder.
copy_workspace() { # copy_workspace FOLDER
	local files=() file
	while IFS= read -r -d '' file; do
		# One that is deleted and not committed yet is listed too.
		[ -e "$root/$file" ] && files+=("$file")
	done < <(git -C "$root" ls-files -z --cached --others --exclude-standard)
	if [ ${#files[@]} -eq 0 ]; then
		say "git lists no files in $root: the deliberate bugs need a clone"
		exit 1
	fi
	rm -rf "$1"
	mkdir -p "$1"
	printf '%s\0' "${files[@]}" | tar -C "$root" --null --files-from=- -cf - | tar -C "$1" -xf -
}
