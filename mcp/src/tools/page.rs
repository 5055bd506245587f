//! Lists in pages: a limit, a budget of bytes, and an opaque cursor that is bound to the caller,
//! the tool and the arguments. A cursor says after which name to go on, so that lists stay in order
//! while things come and go.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::answer::{Code, ToolError};
use crate::access::Seal;
use crate::limits::{CURSOR_TTL, LIST_BYTES};

/// Bytes of the seal that a cursor carries.
const TAG_BYTES: usize = 32;

/// What a cursor is bound to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Binding<'a> {
    /// Who got it.
    pub(super) principal: &'a str,
    /// From which tool.
    pub(super) tool: &'a str,
    /// For which arguments.
    pub(super) arguments: &'a str,
}

/// Makes a cursor that goes on after `position`.
pub(super) fn cursor(seal: &Seal, binding: Binding<'_>, position: &str, now_ms: i64) -> String {
    let payload = format!("{now_ms}\n{position}");
    let mut bytes = seal.tag(bound(binding, &payload).as_bytes());
    bytes.extend_from_slice(payload.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The position of a cursor, if it was made for this caller, tool and arguments, not too long ago,
/// by this process.
pub(super) fn position(
    seal: &Seal,
    binding: Binding<'_>,
    cursor: &str,
    now_ms: i64,
) -> Result<String, ToolError> {
    let expired = || {
        ToolError::new(
            Code::CursorExpired,
            "the cursor is not good, or not any more, for this caller and these arguments",
        )
        .suggest("ask again without a cursor")
    };
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| expired())?;
    let (tag, payload) = bytes.split_at_checked(TAG_BYTES).ok_or_else(expired)?;
    let payload = std::str::from_utf8(payload).map_err(|_| expired())?;
    if !seal.is_tag(bound(binding, payload).as_bytes(), tag) {
        return Err(expired());
    }
    let (made_at, position) = payload.split_once('\n').ok_or_else(expired)?;
    let made_at: i64 = made_at.parse().map_err(|_| expired())?;
    let most = i64::try_from(CURSOR_TTL.as_millis()).unwrap_or(i64::MAX);
    if now_ms.saturating_sub(made_at) > most { Err(expired()) } else { Ok(position.to_owned()) }
}

fn bound(binding: Binding<'_>, payload: &str) -> String {
    // The lengths keep one field from running into the next.
    let Binding { principal, tool, arguments } = binding;
    format!("{}:{principal}{}:{tool}{}:{arguments}{payload}", principal.len(), tool.len(), arguments.len())
}

/// Whether a partition comes behind a position, which is one of a list by topic and partition.
pub(super) fn is_behind(after: Option<&(String, i64)>, topic: &str, partition: u32) -> bool {
    after.is_none_or(|(t, p)| (topic, i64::from(partition)) > (t.as_str(), *p))
}

/// A page of a list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    /// Its entries.
    pub(crate) items: Vec<Value>,
    /// The position of the last one, if there are more.
    pub(crate) more_after: Option<String>,
    bytes: usize,
    last: String,
}

impl Page {
    /// Takes an entry with its position, unless the page is full; then it says so with `false`, and
    /// the list ends here.
    pub(crate) fn push(&mut self, limit: usize, position: impl Into<String>, item: Value) -> bool {
        self.push_within(limit, LIST_BYTES, position, item)
    }

    /// The same with a budget of its own, for an answer with several lists.
    pub(crate) fn push_within(
        &mut self,
        limit: usize,
        budget: usize,
        position: impl Into<String>,
        item: Value,
    ) -> bool {
        let size = item.to_string().len() + 1;
        // One entry is always there, so that a caller gets on.
        let is_full = self.items.len() >= limit || (self.bytes + size > budget && !self.items.is_empty());
        if is_full {
            self.more_after = Some(self.last.clone());
            return false;
        }
        self.bytes += size;
        self.last = position.into();
        self.items.push(item);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_good_for_one_caller_one_tool_and_the_same_arguments() {
        let seal = Seal::new(&[3; 32]);
        let binding = Binding { principal: "a", tool: "list_topics", arguments: "{}" };
        let made = cursor(&seal, binding, "orders", 1_000);
        assert_eq!(position(&seal, binding, &made, 2_000).unwrap(), "orders");
        for other in [
            Binding { principal: "b", ..binding },
            Binding { tool: "list_groups", ..binding },
            Binding { arguments: "{\"limit\":1}", ..binding },
        ] {
            assert_eq!(position(&seal, other, &made, 2_000).unwrap_err().code, Code::CursorExpired);
        }
        assert!(position(&Seal::new(&[4; 32]), binding, &made, 2_000).is_err(), "of another process");
        assert!(position(&seal, binding, &made, 1_000 + 3_600_001).is_err(), "too old");
        for bad in ["", "AAAA", "%%%", &made[1..], &format!("{made}AA")] {
            assert!(position(&seal, binding, bad, 2_000).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_page_is_full_by_number_or_by_bytes() {
        let mut page = Page::default();
        assert!(page.push(2, "a", Value::from(1)) && page.push(2, "b", Value::from(2)));
        assert!(!page.push(2, "c", Value::from(3)));
        assert_eq!(page.more_after.as_deref(), Some("b"));
        let mut page = Page::default();
        assert!(page.push(9, "a", Value::from("x".repeat(LIST_BYTES))), "the first always fits");
        assert!(!page.push(9, "b", Value::from(1)));
    }
}
