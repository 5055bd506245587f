//! Texts that strangers wrote: group ids, client ids, metadata, config values. They are shown, cut
//! and cleaned, and never put into descriptions, instructions or prompts.

use crate::limits::FOREIGN_TEXT_BYTES;

/// The text without control characters and without those that turn the direction of writing or
/// cannot be seen; at most 256 bytes of it, and then `…`.
pub fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len().min(FOREIGN_TEXT_BYTES));
    for c in text.chars().filter(|c| !is_harmful(*c)) {
        if cleaned.len() + c.len_utf8() > FOREIGN_TEXT_BYTES - '…'.len_utf8() {
            cleaned.push('…');
            break;
        }
        cleaned.push(c);
    }
    cleaned
}

/// A text of several lines without what [`clean`] takes out, of any length; lines end with `\n`.
pub fn clean_lines(text: &str) -> String {
    text.chars().map(|c| if c == '\t' { ' ' } else { c }).filter(|c| *c == '\n' || !is_harmful(*c)).collect()
}

/// The value of a config as it is shown: secrets are not.
pub(crate) fn shown_config(name: &str, value: &str) -> String {
    const SECRETS: [&str; 6] = ["password", "secret", "token", "credential", "jaas", "private"];
    let lower = name.to_ascii_lowercase();
    if SECRETS.iter().any(|s| lower.contains(s)) { "********".to_owned() } else { clean(value) }
}

/// Whether a text is shown as it is.
pub fn is_clean(text: &str) -> bool {
    text.len() <= FOREIGN_TEXT_BYTES - '…'.len_utf8() && !text.chars().any(is_harmful)
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_bidi_characters_go_and_long_texts_are_cut() {
        assert_eq!(clean("a\u{0}b\nc\u{202e}d\u{1b}[31me\u{feff}"), "abcd[31me");
        assert_eq!(clean("größe-ok"), "größe-ok");
        assert_eq!(clean_lines("a\r\nb\u{202e}\tc\n"), "a\nb c\n");
        let long = "ä".repeat(400);
        let cut = clean(&long);
        assert!(cut.len() <= FOREIGN_TEXT_BYTES && cut.ends_with('…'), "{}", cut.len());
        assert!(is_clean("orders") && !is_clean(&long) && !is_clean("a\nb"));
    }
}
