#!/usr/bin/env bash
# Fails if a line of a comment in Rust has more than 100 columns, outside of drawings and tables.
set -euo pipefail
cd "$(dirname "$0")/../.."
git ls-files -z '*.rs' | xargs -0 perl -CSD -ne '
	$drawing = 0 if $. == 1;
	if (m{^\s*//}) {
		$drawing = !$drawing if m{^\s*//[/!]?\s*```};
		if (!$drawing && length($_) > 101 && !m{^\s*//[/!]?\s*\|}) {
			print "$ARGV:$.: a comment has more than 100 columns\n";
			$found = 1;
		}
	} else {
		$drawing = 0;
	}
	close ARGV if eof;
	END { $? = 1 if $found }
'
