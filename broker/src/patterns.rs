//! Patterns that clients and operators give: compiled within bounds, and matched against a whole
//! text.

use crate::limits::{PATTERN_BYTES, PATTERN_CHARS};
use regex::bytes::{Regex, RegexBuilder};

/// Compiles a pattern that must match the whole of a text; else a sentence why it cannot be.
pub(crate) fn whole(pattern: &str) -> Result<Regex, String> {
    check_length(pattern)?;
    let build = |built: &str| {
        RegexBuilder::new(built)
            // Names of topics are ASCII, and so are the classes of RE2, whose patterns Kafka's are.
            .unicode(false)
            .size_limit(PATTERN_BYTES)
            .dfa_size_limit(PATTERN_BYTES)
            .build()
            .map_err(|e| format!("The pattern {built:?} is not valid: {e}"))
    };
    // By itself first: `a)(b` would be valid in parentheses.
    build(pattern)?;
    build(&format!(r"\A(?:{pattern})\z"))
}

/// Refuses a pattern that is too long to be looked at.
pub(crate) fn check_length(pattern: &str) -> Result<(), String> {
    if pattern.chars().nth(PATTERN_CHARS).is_some() {
        return Err(format!("The pattern has more than {PATTERN_CHARS} characters."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_text_is_matched() {
        let regex = whole("a|b.*").unwrap();
        for (text, matches) in [("a", true), ("bcd", true), ("ab", false), ("", false)] {
            assert_eq!(regex.is_match(text.as_bytes()), matches, "{text}");
        }
        for bad in ["a)(b", "(", &"x".repeat(5_000), "(x{1000}){1000}"] {
            assert!(whole(bad).is_err());
        }
    }
}
