//! Evidence: what is known, from where, over which time; and what is not known.

use serde_json::Value;

/// How good a piece of evidence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// All of its sources were read.
    Ok,
    /// Some of its sources are missing.
    Partial,
}

impl Status {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Partial => "partial",
        }
    }
}

/// One piece of evidence that is present.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// Its name, which causes cite.
    pub id: String,
    /// Where it comes from: `etcd`, `metrics`, `changes`, `observer`.
    pub source: String,
    /// The time that it is over, ms since 1970; `None` for what is so at one time.
    pub window: Option<(i64, i64)>,
    /// How many samples it rests on, if it is over a time.
    pub samples: Option<usize>,
    /// When it was observed, ms since 1970.
    pub observed_at_ms: Option<i64>,
    /// How good it is.
    pub status: Status,
    /// What it says; never null.
    pub value: Value,
}

/// Something that would have been looked at, and is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name.
    pub id: String,
    /// Where it would have come from.
    pub source: String,
    /// Why it is not known.
    pub reason: String,
}

/// All evidence of one question.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exhibits {
    present: Vec<Evidence>,
    missing: Vec<Missing>,
}

impl Exhibits {
    /// Takes a piece of evidence. One without a value is missing.
    pub fn put(&mut self, evidence: Evidence) {
        if evidence.value.is_null() {
            let reason = "nothing is known of it for that time".to_owned();
            self.missing.push(Missing { id: evidence.id, source: evidence.source, reason });
        } else {
            self.present.push(evidence);
        }
    }

    /// Notes what is not known.
    pub fn miss(&mut self, id: &str, source: &str, reason: &str) {
        self.missing.push(Missing {
            id: id.to_owned(),
            source: source.to_owned(),
            reason: reason.to_owned(),
        });
    }

    /// The evidence that is present.
    pub fn present(&self) -> &[Evidence] {
        &self.present
    }

    /// What is missing.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// A piece of evidence.
    pub fn get(&self, id: &str) -> Option<&Evidence> {
        self.present.iter().find(|e| e.id == id)
    }

    /// Whether it is present.
    pub fn has(&self, id: &str) -> bool {
        self.get(id).is_some()
    }

    /// A number, or how many entries a list has; `None` if it is not known.
    pub fn number(&self, id: &str) -> Option<f64> {
        match &self.get(id)?.value {
            Value::Number(number) => number.as_f64(),
            Value::Array(list) => u32::try_from(list.len()).ok().map(f64::from),
            _ => None,
        }
    }

    /// `true` or `false`; `None` if it is not known.
    pub fn flag(&self, id: &str) -> Option<bool> {
        self.get(id)?.value.as_bool()
    }

    /// A text; `None` if it is not known.
    pub fn text(&self, id: &str) -> Option<&str> {
        self.get(id)?.value.as_str()
    }

    /// Takes what another question found of one thing, under a name of its own: `group.lag` becomes
    /// `group:2.lag`. What is about the cluster is here already.
    pub fn absorb(&mut self, other: &Self, kind: &str, number: usize) {
        let rename = |id: &str| renamed(id, kind, number);
        let own = |id: &str| rename(id) != id;
        let present = other.present.iter().filter(|e| own(&e.id));
        self.present.extend(present.map(|e| Evidence { id: rename(&e.id), ..e.clone() }));
        let missing = other.missing.iter().filter(|m| own(&m.id));
        self.missing.extend(missing.map(|m| Missing { id: rename(&m.id), ..m.clone() }));
    }
}

/// The name of evidence about one of several things.
pub(super) fn renamed(id: &str, kind: &str, number: usize) -> String {
    match id.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.')) {
        Some(rest) => format!("{kind}:{number}.{rest}"),
        None => id.to_owned(),
    }
}
