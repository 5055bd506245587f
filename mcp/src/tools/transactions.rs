//! Transactions: which are open since when, what each keeps from whoever reads what is committed,
//! and how the last one of a transactional id ended.
//!
//! Brokers write down those that have been open for ten seconds, the oldest hundred of them, with
//! some of their partitions each. A transactional id's own key says no more of its partitions than
//! which groups it commits offsets for, so a caller who may not see every topic sees an id only
//! while it has an open transaction in one of the caller's topics.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use strandline_metadata::values::transaction::{
    OpenTransactionValue, TransactionStateValue, TransactionValue,
};
use uuid::Uuid;

use super::answer::{Code, ToolError};
use super::page::Page;
use super::spec::{CURSOR, Kind, LIMIT, TOPIC, ToolSpec, optional, required};
use super::{Body, Call, body, topics};
use crate::access::Scope;
use crate::clock::rfc3339;
use crate::foreign::clean;
use crate::source::etcd::Need;
use crate::source::view::{Marks, Stored, View};

/// Bytes of a transactional id.
const TRANSACTIONAL_ID: Kind = Kind::Text(1024);

pub(super) const LIST_TRANSACTIONS: ToolSpec = ToolSpec {
    name: "list_transactions",
    title: "List transactions",
    description: "List open (slow, hanging) transactions by age with time-out, producer and the partitions that they hold back, then other transactional ids with their last outcome. Open for less than 10 s is not seen.",
    scope: Scope::Read,
    cost: 2,
    params: &[
        optional("prefix", TRANSACTIONAL_ID, "only ids that begin so"),
        optional("min_age_s", Kind::Int(0, i64::MAX), "only those open so long"),
        optional("topic", TOPIC, "only those open in it"),
        LIMIT,
        CURSOR,
    ],
    output: "{transactions:[{transactional_id:s,state:s?,last_outcome:(committed|aborted)?,producer_id:i,epoch:i,timeout_ms:i,open_since:s?,age_s:i?,times_out_at:s?,partition_count:i?,partitions:[{topic:s?,partition:i,first_offset:i,held_back:i?}],updated_at:s?}],total:i,open:i,next_cursor:s?}",
};

pub(super) const DESCRIBE_TRANSACTION: ToolSpec = ToolSpec {
    name: "describe_transaction",
    title: "Describe a transaction",
    description: "Describe a transactional id: producer, open transaction, groups, and how many offsets it holds back from read_committed per partition (end - first_offset).",
    scope: Scope::Read,
    cost: 2,
    params: &[required("transactional_id", TRANSACTIONAL_ID, "")],
    output: "{transaction:{transactional_id:s,state:s?,last_outcome:(committed|aborted)?,producer_id:i,epoch:i,last_epoch:i?,previous_producer_id:i?,timeout_ms:i,open_since:s?,age_s:i?,times_out_at:s?,partition_count:i?,held_back:i?,groups:[s],updated_at:s?,updated_revision:i?,listed_revision:i?},partitions:[{topic:s?,topic_id:s,partition:i,first_offset:i,last_stable_offset:i?,end_offset:i?,held_back:i?,as_of_revision:i?}]}",
};

/// A partition that an open transaction has written to.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenPartition<'v> {
    /// The topic's name; `None` if it is gone.
    pub(super) topic: Option<&'v str>,
    pub(super) topic_id: Uuid,
    pub(super) partition: u32,
    pub(super) first_offset: i64,
    marks: Option<Marks>,
}

impl OpenPartition<'_> {
    /// How many offsets it keeps from whoever reads what is committed; `None` if it is not known.
    /// Where the last stable offset is further, the transaction has ended since it was listed.
    pub(super) fn held_back(&self) -> Option<i64> {
        let marks = self.marks?.marks;
        let has_ended = marks.last_stable > self.first_offset;
        Some(if has_ended { 0 } else { (marks.end - self.first_offset).max(0) })
    }
}

/// An open transaction, as far as a caller sees it.
#[derive(Clone, Debug)]
pub(super) struct Open<'v> {
    pub(super) value: &'v OpenTransactionValue,
    /// The partitions that the caller may see.
    pub(super) partitions: Vec<OpenPartition<'v>>,
    /// How many others there are.
    hidden: u64,
}

impl<'v> Open<'v> {
    /// What the caller sees of a transaction; `None` if that is nothing.
    fn seen(call: &Call<'_>, view: &'v View, value: &'v OpenTransactionValue) -> Option<Self> {
        let is_limited = call.principal.topics.is_limited();
        let partitions: Vec<OpenPartition<'v>> = value
            .first
            .iter()
            .map(|p| OpenPartition {
                topic: view.names.get(&p.topic_id).map(String::as_str),
                topic_id: p.topic_id,
                partition: p.partition,
                first_offset: p.first_offset,
                marks: view.marks(p.topic_id, p.partition),
            })
            .filter(|p| p.topic.map_or(!is_limited, |topic| call.sees_topic(topic)))
            .collect();
        if is_limited && partitions.is_empty() {
            return None;
        }
        let hidden = value.partitions.saturating_sub(u64::try_from(partitions.len()).unwrap_or(u64::MAX));
        Some(Self { value, partitions, hidden })
    }

    /// For how long it has been open, in s.
    pub(super) fn age_s(&self, now_ms: i64) -> i64 {
        (now_ms - self.value.since_ms).max(0) / 1000
    }

    /// When its time-out is over, ms since 1970.
    pub(super) fn times_out_ms(&self) -> i64 {
        self.value.since_ms.saturating_add(i64::from(self.value.timeout_ms))
    }

    /// What it holds back in all partitions of which that is known; `None` if it is of none.
    pub(super) fn held_back(&self) -> Option<i64> {
        let known = self.partitions.iter().filter_map(OpenPartition::held_back);
        known.reduce(i64::saturating_add)
    }
}

/// The open transactions that a caller sees, the oldest first.
pub(super) fn open<'v>(call: &Call<'_>, view: &'v View) -> Vec<Open<'v>> {
    let listed = view.open_transactions.iter().flat_map(|stored| &stored.value.oldest);
    let mut open: Vec<Open<'v>> = listed.filter_map(|value| Open::seen(call, view, value)).collect();
    open.sort_by_key(|open| (open.value.since_ms, open.value.transactional_id.as_str()));
    open
}

/// A transactional id, as far as a caller sees it.
struct Entry<'v> {
    id: &'v str,
    stored: Option<&'v Stored<TransactionValue>>,
    open: Option<Open<'v>>,
}

impl Entry<'_> {
    /// Its place in a list: those that are open by age, then the others by id.
    fn position(&self) -> (bool, i64, &str) {
        let since_ms = self.open.as_ref().map(|open| open.value.since_ms);
        (since_ms.is_none(), since_ms.unwrap_or_default(), self.id)
    }

    /// Where it stands, in Kafka's words.
    fn state(&self) -> Option<&'static str> {
        if self.open.is_some() {
            return Some("Ongoing");
        }
        self.stored.map(|stored| match stored.value.state {
            TransactionStateValue::Empty => "Empty",
            TransactionStateValue::Ongoing => "Ongoing",
            TransactionStateValue::CompleteCommit => "CompleteCommit",
            TransactionStateValue::CompleteAbort => "CompleteAbort",
        })
    }

    /// What became of the last transaction that has ended, if the id's key says it still.
    fn last_outcome(&self) -> Option<&'static str> {
        match self.stored?.value.state {
            TransactionStateValue::Empty | TransactionStateValue::Ongoing => None,
            TransactionStateValue::CompleteCommit => Some("committed"),
            TransactionStateValue::CompleteAbort => Some("aborted"),
        }
    }

    /// What a list and a description both say of it. The producer is that of the open transaction:
    /// a newer one has fenced it off.
    fn json(&self, call: &Call<'_>) -> Value {
        let (stored, open) = (self.stored.map(|stored| &stored.value), self.open.as_ref());
        let own =
            open.map(|open| (open.value.producer_id, open.value.epoch, i64::from(open.value.timeout_ms)));
        let (producer_id, epoch, timeout_ms) = own
            .or_else(|| stored.map(|s| (s.producer_id, s.epoch, i64::from(s.timeout_ms))))
            .unwrap_or((-1, -1, 0));
        let count = open.map(|open| open.value.partitions).filter(|_| !call.principal.topics.is_limited());
        let seen = open.and_then(|open| u64::try_from(open.partitions.len()).ok());
        json!({
            "transactional_id": clean(self.id), "state": self.state(), "last_outcome": self.last_outcome(),
            "producer_id": producer_id, "epoch": epoch, "timeout_ms": timeout_ms,
            "open_since": open.and_then(|open| rfc3339(open.value.since_ms)),
            "age_s": open.map(|open| open.age_s(call.now_ms)),
            "times_out_at": open.and_then(|open| rfc3339(open.times_out_ms())),
            "partition_count": count.or(seen),
            "updated_at": stored.and_then(|s| rfc3339(s.updated_ms)),
        })
    }
}

/// The transactional ids that a caller sees, those with an open transaction first.
fn entries<'v>(call: &Call<'_>, view: &'v View) -> Vec<Entry<'v>> {
    let mut entries: BTreeMap<&str, Entry<'v>> = BTreeMap::new();
    if !call.principal.topics.is_limited() {
        let all = view.transactions.iter();
        entries
            .extend(all.map(|(id, stored)| (id.as_str(), Entry { id, stored: Some(&**stored), open: None })));
    }
    for open in open(call, view) {
        let id = open.value.transactional_id.as_str();
        let stored = view.transactions.get(id).map(|stored| &**stored);
        entries.insert(id, Entry { id, stored, open: Some(open) });
    }
    let mut entries: Vec<Entry<'v>> = entries.into_values().collect();
    entries.sort_by(|a, b| a.position().cmp(&b.position()));
    entries
}

/// The position of a list to go on after.
fn after(call: &Call<'_>) -> Result<Option<(bool, i64, String)>, ToolError> {
    let position = call.position()?;
    let parts = position.as_deref().and_then(|position| {
        let (is_closed, rest) = position.split_once('/')?;
        let (since_ms, id) = rest.split_once('/')?;
        Some((is_closed == "true", since_ms.parse().ok()?, id.to_owned()))
    });
    Ok(parts)
}

/// Says what is not known of what is open.
fn note_open(call: &mut Call<'_>, view: &View) {
    let Some(listed) = view.open_transactions.as_ref().map(|stored| &stored.value) else { return };
    let left_out = listed.open.saturating_sub(u64::try_from(listed.oldest.len()).unwrap_or(u64::MAX));
    if left_out > 0 {
        // How many others have is not for everybody.
        let count = if call.principal.topics.is_limited() { "some".to_owned() } else { left_out.to_string() };
        call.meta.missing(
            "transactions_left_out",
            format!("of the open transactions only the oldest are known; {count} are left out"),
        );
    }
    if !listed.oldest.is_empty() && !view.leaders.contains_key("jobs") {
        call.meta.missing(
            "jobs_not_held",
            "no broker holds the background jobs: what is listed as open may have ended, and nobody aborts what times out",
        );
    }
}

/// Says how many partitions of what is shown are not.
fn note_hidden(call: &mut Call<'_>, hidden: u64) {
    if hidden == 0 {
        return;
    }
    if call.principal.topics.is_limited() {
        let message =
            format!("{hidden} partitions are hidden: this caller may not see them, or they are not known");
        call.meta.warn("partitions_hidden", message);
    } else {
        let message = format!(
            "{hidden} partitions are left out: nothing is written to them yet, or the transaction has very many"
        );
        call.meta.warn("partitions_left_out", message);
    }
}

pub(super) async fn list_transactions(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ALL).await?;
    let (after, limit) = (after(call)?, call.args.limit());
    let prefix = call.args.text("prefix").unwrap_or_default().to_owned();
    let (min_age_s, topic) = (call.args.int("min_age_s"), call.args.text("topic").map(str::to_owned));
    if let Some(topic) = &topic {
        topics::find(call, &view, topic)?;
    }
    let is_wanted = |entry: &Entry<'_>| {
        let open = entry.open.as_ref();
        let writes = |topic: &String| {
            open.is_some_and(|open| open.partitions.iter().any(|p| p.topic == Some(topic.as_str())))
        };
        entry.id.starts_with(&prefix)
            && min_age_s.is_none_or(|least| open.is_some_and(|open| open.age_s(call.now_ms) >= least))
            && topic.as_ref().is_none_or(writes)
    };
    let wanted: Vec<Entry<'_>> = entries(call, &view).into_iter().filter(is_wanted).collect();
    let (mut page, mut hidden) = (Page::default(), 0);
    let is_behind = |entry: &&Entry<'_>| {
        after.as_ref().is_none_or(|(closed, since, id)| entry.position() > (*closed, *since, id.as_str()))
    };
    for entry in wanted.iter().filter(is_behind) {
        let partitions = entry.open.iter().flat_map(|open| &open.partitions).map(|p| {
            json!({
                "topic": p.topic.map(clean), "partition": p.partition, "first_offset": p.first_offset,
                "held_back": p.held_back(),
            })
        });
        let mut row = entry.json(call);
        row["partitions"] = partitions.collect();
        let (is_closed, since_ms, id) = entry.position();
        if !page.push(limit, format!("{is_closed}/{since_ms}/{id}"), row) {
            break;
        }
        hidden += entry.open.as_ref().map_or(0, |open| open.hidden);
    }
    note_open(call, &view);
    note_hidden(call, hidden);
    let open = wanted.iter().filter(|entry| entry.open.is_some()).count();
    let (total, next) = (wanted.len(), call.next_cursor(&page));
    Ok(body(json!({"transactions": page.items, "total": total, "open": open, "next_cursor": next})))
}

pub(super) async fn describe_transaction(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ALL).await?;
    let wanted = call.args.text("transactional_id").unwrap_or_default().to_owned();
    let entries = entries(call, &view);
    let found = entries.iter().find(|entry| entry.id == wanted);
    let found = found.or_else(|| entries.iter().find(|entry| clean(entry.id) == wanted));
    let Some(entry) = found else {
        let message = format!("there is no transactional id {:?}", clean(&wanted));
        return Err(ToolError::new(Code::NotFound, message)
            .suggest("list_transactions has those that this caller may see"));
    };
    let open = entry.open.as_ref();
    let partitions: Vec<Value> = open.iter().flat_map(|open| &open.partitions).map(partition_row).collect();
    let stored = entry.stored;
    let groups: BTreeSet<String> = stored
        .iter()
        .flat_map(|stored| &stored.value.groups)
        .filter(|group| call.sees_group(group))
        .map(|group| clean(group))
        .collect();
    let mut transaction = body(entry.json(call));
    let more = json!({
        "last_epoch": stored.map(|s| s.value.last_epoch).filter(|epoch| *epoch >= 0),
        "previous_producer_id": stored.map(|s| s.value.previous_producer_id).filter(|id| *id >= 0),
        "held_back": open.and_then(Open::held_back),
        "groups": groups,
        "updated_revision": stored.map(|s| s.mod_revision),
        "listed_revision": view.open_transactions.as_ref().filter(|_| open.is_some()).map(|s| s.mod_revision),
    });
    transaction.extend(body(more));
    let hidden = open.map_or(0, |open| open.hidden);
    note_open(call, &view);
    note_hidden(call, hidden);
    Ok(body(json!({"transaction": transaction, "partitions": partitions})))
}

fn partition_row(p: &OpenPartition<'_>) -> Value {
    json!({
        "topic": p.topic.map(clean), "topic_id": p.topic_id, "partition": p.partition,
        "first_offset": p.first_offset,
        "last_stable_offset": p.marks.map(|m| m.marks.last_stable), "end_offset": p.marks.map(|m| m.marks.end),
        "held_back": p.held_back(), "as_of_revision": p.marks.map(|m| m.revision),
    })
}

#[cfg(test)]
mod tests {
    use strandline_metadata::values::watermarks::Watermarks;

    use super::*;

    #[test]
    fn what_a_transaction_holds_back_ends_where_it_has_ended() {
        let at = |last_stable: i64, first_offset: i64| {
            let marks = Watermarks { log_start: 0, end: 100, last_stable, bytes: 0, last_timestamp_ms: 0 };
            let marks = Some(Marks { marks, revision: 5 });
            OpenPartition { topic: None, topic_id: Uuid::nil(), partition: 0, first_offset, marks }
        };
        assert_eq!(at(40, 40).held_back(), Some(60));
        assert_eq!(at(40, 70).held_back(), Some(30), "another one holds more");
        assert_eq!(at(90, 40).held_back(), Some(0), "it has ended since");
        assert_eq!(at(100, 130).held_back(), Some(0), "it is younger than the watermarks");
        assert_eq!(OpenPartition { marks: None, ..at(0, 0) }.held_back(), None);
    }
}
