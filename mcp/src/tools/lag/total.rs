//! A group's partitions together.

use super::row::{Row, Status};

/// All of a group together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::tools) struct Total {
    /// `None` if a part of it is unknown.
    pub(in crate::tools) lag: Option<i64>,
    pub(in crate::tools) max_lag: Option<i64>,
    pub(in crate::tools) partitions: usize,
    pub(in crate::tools) never_committed: usize,
    pub(in crate::tools) out_of_range: usize,
    pub(in crate::tools) unknown: usize,
    /// What the lag of those partitions was whose past is known, and is now.
    pub(in crate::tools) compared: Option<(i64, i64)>,
}

/// All of some rows together.
pub(in crate::tools) fn sum<'a>(rows: impl Iterator<Item = &'a Row> + Clone) -> Total {
    let count = |status: Status| rows.clone().filter(|r| r.status == status).count();
    let committed = || rows.clone().filter(|r| r.now.committed.is_some());
    // What was never committed has no lag; what was and has no end has an unknown one.
    let lag: Option<i64> = committed().map(|r| r.lag).sum();
    let compared = rows.clone().filter_map(|r| Some((r.lag_before?, r.lag?)));
    let compared = compared.fold(None, |sum: Option<(i64, i64)>, (before, now)| {
        let (b, n) = sum.unwrap_or_default();
        Some((b + before, n + now))
    });
    let mut total = Total {
        lag: lag.filter(|_| committed().next().is_some()),
        max_lag: committed().filter_map(|r| r.lag).max(),
        partitions: rows.clone().count(),
        never_committed: count(Status::NeverCommitted),
        out_of_range: count(Status::OutOfRange),
        unknown: 0,
        compared,
    };
    total.unknown = rows.filter(|r| r.now.committed.is_some() && r.now.end.is_none()).count();
    total
}

/// Where the lag goes: by more than a hundredth, or it is steady.
pub(in crate::tools) fn trend(total: &Total) -> &'static str {
    let Some((before, now)) = total.compared else { return "unknown" };
    let slack = (before / 100).max(1);
    match now - before {
        d if d > slack => "growing",
        d if d < -slack => "shrinking",
        _ => "steady",
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::Now;
    use super::super::row::tests::{now, past, row_of};
    use super::*;

    #[test]
    fn an_unknown_part_makes_the_sum_unknown_and_what_was_never_committed_does_not() {
        let known = row_of(now(100, 150, 0), past(50, 60));
        let never = row_of(Now { committed: None, ..now(0, 9, 0) }, None);
        let blind = row_of(Now { end: None, ..now(1, 0, 0) }, None);
        let total = sum([known.clone(), never.clone()].iter());
        assert_eq!((total.lag, total.max_lag, total.never_committed), (Some(50), Some(50), 1));
        assert_eq!(trend(&total), "growing");
        assert_eq!(sum([known, blind.clone()].iter()).lag, None);
        assert_eq!(sum([never].iter()).lag, None, "nothing is committed: no lag, not zero");
        assert_eq!((sum([&blind].into_iter()).unknown, trend(&sum([&blind].into_iter()))), (1, "unknown"));
    }
}
