//! Whether retention overtakes a group.

use super::super::figures::whole;
use super::row::Row;
use crate::source::history::precise;

/// Whether retention has overtaken a partition of a group, or will.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::tools) struct Readiness {
    pub(in crate::tools) verdict: &'static str,
    pub(in crate::tools) lost: Option<i64>,
    pub(in crate::tools) margin: Option<i64>,
    pub(in crate::tools) overtaken_in_s: Option<i64>,
    pub(in crate::tools) reason: String,
}

/// Judges by what the log's start and the group did in the last minutes; by nothing that is not
/// seen.
pub(in crate::tools) fn readiness(row: &Row, retains_forever: bool) -> Readiness {
    let unknown = |reason: &str| Readiness {
        verdict: "unknown",
        lost: None,
        margin: None,
        overtaken_in_s: None,
        reason: reason.to_owned(),
    };
    let (Some(start), Some(end)) = (row.now.log_start, row.now.end) else {
        return unknown("the partition has no watermarks yet");
    };
    let Some(committed) = row.now.committed else { return unknown("the group has committed nothing here") };
    let margin = committed - start;
    if margin < 0 {
        return Readiness {
            verdict: "overtaken",
            lost: Some(-margin),
            margin: Some(margin),
            overtaken_in_s: Some(0),
            reason: format!("the log starts at {start}, {} records after what the group read last", -margin),
        };
    }
    let known = |verdict, overtaken_in_s, reason: String| Readiness {
        verdict,
        lost: Some(0),
        margin: Some(margin),
        overtaken_in_s,
        reason,
    };
    if committed >= end {
        return known("safe", None, "the group has read everything".to_owned());
    }
    if retains_forever {
        return known("safe", None, "no retention is configured".to_owned());
    }
    match (row.log_start_rate, row.consume_rate) {
        (Some(deleted), Some(consumed)) if deleted > consumed => {
            let in_s = whole(precise(margin) / (deleted - consumed));
            let reason = format!("records go at {deleted:.1}/s and the group reads {consumed:.1}/s");
            known("at_risk", in_s, reason)
        }
        (Some(deleted), Some(consumed)) => {
            known("safe", None, format!("records go at {deleted:.1}/s and the group reads {consumed:.1}/s"))
        }
        _ => Readiness {
            lost: Some(0),
            margin: Some(margin),
            ..unknown("how fast records go and are read is not known yet")
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::{now, past, row_of};
    use super::*;

    #[test]
    fn retention_overtakes_who_reads_more_slowly_than_records_go() {
        let behind = Row { log_start_rate: Some(3.0), ..row_of(now(105, 1_000, 0), past(5, 900)) };
        let judged = readiness(&behind, false);
        assert_eq!((judged.verdict, judged.overtaken_in_s, judged.margin), ("at_risk", Some(50), Some(100)));
        assert_eq!(readiness(&behind, true).verdict, "safe");
        let quick = Row { log_start_rate: Some(0.5), ..behind.clone() };
        assert_eq!(readiness(&quick, false).verdict, "safe");
        let lost = readiness(&row_of(now(2, 1_000, 0), None), false);
        assert_eq!((lost.verdict, lost.lost), ("overtaken", Some(3)));
        assert_eq!(readiness(&row_of(now(105, 1_000, 0), None), false).verdict, "unknown");
        assert_eq!(readiness(&row_of(now(1_000, 1_000, 0), None), false).verdict, "safe");
    }
}
