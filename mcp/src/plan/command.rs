//! Commands of Kafka's own tools, as a person would type them into a shell.

/// A word as a shell takes it for one word, whatever is in it.
pub fn quoted(word: &str) -> String {
    let is_plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '=' | ',' | '@');
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A tool with its arguments. `bootstrap` is an address, or nothing for a person to fill in.
pub fn tool(name: &str, bootstrap: Option<&str>, arguments: &[&str]) -> String {
    let bootstrap = bootstrap.map_or_else(|| "\"$BOOTSTRAP\"".to_owned(), quoted);
    let mut line = format!("{name} --bootstrap-server {bootstrap}");
    for argument in arguments {
        line.push(' ');
        line.push_str(&quoted(argument));
    }
    line
}

/// Configs as `--add-config` takes them: values with commas go in brackets.
pub fn configs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let pairs = pairs.into_iter().map(|(name, value)| {
        if value.contains(',') { format!("{name}=[{value}]") } else { format!("{name}={value}") }
    });
    pairs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_in_a_word_stays_in_it() {
        assert_eq!(quoted("orders-1.a_b"), "orders-1.a_b");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("a b;$(rm -rf /)`x`\"\\"), "'a b;$(rm -rf /)`x`\"\\'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(
            tool("kafka-topics.sh", None, &["--topic", "x y"]),
            "kafka-topics.sh --bootstrap-server \"$BOOTSTRAP\" --topic 'x y'"
        );
        assert_eq!(tool("t", Some("h:1"), &[]), "t --bootstrap-server h:1");
        assert_eq!(configs([("a", "1"), ("b", "x,y")]), "a=1,b=[x,y]");
    }
}
