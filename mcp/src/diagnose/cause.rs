//! Causes: what a rule concludes, and on which evidence.

use super::evidence::renamed;
use super::{Exhibits, Rule};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing is wrong.
    Ok,
    /// Worth knowing.
    Info,
    /// It cannot be said.
    Unknown,
    /// Somebody should look.
    Warning,
    /// Somebody should look now.
    Critical,
}

impl Severity {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// How sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Nothing can be said.
    None,
    /// It may be so.
    Low,
    /// It is likely.
    Medium,
    /// The evidence says so itself.
    High,
}

impl Confidence {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    const fn lowered(self) -> Self {
        match self {
            Self::High => Self::Medium,
            Self::Medium | Self::Low => Self::Low,
            Self::None => Self::None,
        }
    }
}

/// The code of a cause. Their order is the order in which causes are named: what explains others
/// comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// etcd cannot be read.
    EtcdUnreachable,
    /// No broker is registered.
    NoBrokers,
    /// The object store refuses the brokers' credentials.
    StorageDenied,
    /// The object store does not answer.
    StorageFailing,
    /// Records are written and cannot be committed.
    CommitFailing,
    /// What a group committed is not in the log.
    OffsetsOutOfRange,
    /// Retention will overtake a group: why it is slow matters once its records are safe.
    RetentionOvertaking,
    /// Nobody is in the group.
    EmptyGroup,
    /// An open transaction keeps records from whoever reads what is committed.
    OpenTransaction,
    /// The group rebalances again and again.
    RebalanceStorm,
    /// A broker lost its registration.
    BrokerDown,
    /// A broker starts again and again.
    BrokerRestarting,
    /// A broker serves metrics and is not registered.
    BrokerUnregistered,
    /// The object store says: slow down.
    StorageThrottled,
    /// The object store is slow.
    StorageSlow,
    /// A share of the requests to the object store fails.
    StorageErrors,
    /// etcd or commits are slow.
    EtcdSlow,
    /// Producers are slowed since etcd is nearly full.
    EtcdNearlyFull,
    /// Producers are slowed since the state has very many offset ranges.
    StateCrowded,
    /// A broker applies commits late.
    BrokerBehind,
    /// Nobody runs the background jobs.
    NoJobHolder,
    /// A partition gets most of the records.
    HotPartition,
    /// Members are there and commit nothing.
    ConsumerStalled,
    /// Much more is produced than before.
    ProducerSurge,
    /// Less is read than is produced.
    ConsumerSlow,
    /// A group has committed nothing.
    NeverCommitted,
    /// A broker is leaving.
    BrokerDraining,
    /// Metrics cannot be read.
    MetricsBlind,
    /// The caller's own token ends soon.
    TokenExpiring,
    /// The group is at the end.
    NoLag,
}

impl Code {
    /// Every code.
    pub const ALL: &[Self] = &[
        Self::EtcdUnreachable,
        Self::NoBrokers,
        Self::StorageDenied,
        Self::StorageFailing,
        Self::CommitFailing,
        Self::OffsetsOutOfRange,
        Self::RetentionOvertaking,
        Self::EmptyGroup,
        Self::OpenTransaction,
        Self::RebalanceStorm,
        Self::BrokerDown,
        Self::BrokerRestarting,
        Self::BrokerUnregistered,
        Self::StorageThrottled,
        Self::StorageSlow,
        Self::StorageErrors,
        Self::EtcdSlow,
        Self::EtcdNearlyFull,
        Self::StateCrowded,
        Self::BrokerBehind,
        Self::NoJobHolder,
        Self::HotPartition,
        Self::ConsumerStalled,
        Self::ProducerSurge,
        Self::ConsumerSlow,
        Self::NeverCommitted,
        Self::BrokerDraining,
        Self::MetricsBlind,
        Self::TokenExpiring,
        Self::NoLag,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EtcdUnreachable => "etcd_unreachable",
            Self::NoBrokers => "no_brokers",
            Self::StorageDenied => "storage_denied",
            Self::StorageFailing => "storage_failing",
            Self::CommitFailing => "commit_failing",
            Self::OffsetsOutOfRange => "offsets_out_of_range",
            Self::EmptyGroup => "empty_group",
            Self::OpenTransaction => "open_transaction",
            Self::RebalanceStorm => "rebalance_storm",
            Self::BrokerDown => "broker_down",
            Self::BrokerRestarting => "broker_restarting",
            Self::BrokerUnregistered => "broker_unregistered",
            Self::StorageThrottled => "storage_throttled",
            Self::StorageSlow => "storage_slow",
            Self::StorageErrors => "storage_errors",
            Self::EtcdSlow => "etcd_slow",
            Self::EtcdNearlyFull => "etcd_nearly_full",
            Self::StateCrowded => "state_crowded",
            Self::BrokerBehind => "broker_behind",
            Self::NoJobHolder => "no_job_holder",
            Self::HotPartition => "hot_partition",
            Self::ConsumerStalled => "consumer_stalled",
            Self::ProducerSurge => "producer_surge",
            Self::ConsumerSlow => "consumer_slow",
            Self::RetentionOvertaking => "retention_overtaking",
            Self::NeverCommitted => "never_committed",
            Self::BrokerDraining => "broker_draining",
            Self::MetricsBlind => "metrics_blind",
            Self::TokenExpiring => "token_expiring",
            Self::NoLag => "no_lag",
        }
    }
}

/// What a rule says, before it is held against the evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// The code of the cause.
    pub code: Code,
    /// The rule's name, which is part of the interface.
    pub rule: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// How sure it is if all evidence is there and none speaks against it.
    pub confidence: Confidence,
    /// The evidence that it rests on.
    pub evidence: Vec<&'static str>,
    /// The evidence that speaks against it.
    pub counter_evidence: Vec<&'static str>,
    /// Why, in a sentence.
    pub reasoning: String,
}

/// A cause that holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// Its code.
    pub code: Code,
    /// The rule that found it.
    pub rule: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// How sure it is.
    pub confidence: Confidence,
    /// Names of the evidence that it rests on.
    pub evidence_refs: Vec<String>,
    /// Names of the evidence that speaks against it.
    pub counter_evidence_refs: Vec<String>,
    /// Why, in a sentence.
    pub reasoning: String,
}

impl Cause {
    /// Holds what a rule says against the evidence: it may cite only what is present. Without any
    /// it is no cause; where some is missing, or some speaks against it, it is less sure.
    pub fn of(draft: Draft, exhibits: &Exhibits) -> Option<Self> {
        let present = |ids: &[&str]| -> Vec<String> {
            ids.iter().filter(|id| exhibits.has(id)).map(|id| (*id).to_owned()).collect()
        };
        let (evidence_refs, counter_evidence_refs) =
            (present(&draft.evidence), present(&draft.counter_evidence));
        if evidence_refs.is_empty() {
            return None;
        }
        let mut confidence = draft.confidence;
        if evidence_refs.len() < draft.evidence.len() {
            confidence = confidence.lowered();
        }
        if !counter_evidence_refs.is_empty() {
            confidence = confidence.lowered();
        }
        Some(Self {
            code: draft.code,
            rule: draft.rule,
            severity: draft.severity,
            confidence,
            evidence_refs,
            counter_evidence_refs,
            reasoning: draft.reasoning,
        })
    }

    /// The same cause of one of several things: its evidence has the names that
    /// [`Exhibits::absorb`] gives, and `named` says which thing it is.
    #[must_use]
    pub fn of_one(mut self, kind: &str, number: usize, named: &str) -> Self {
        for id in self.evidence_refs.iter_mut().chain(&mut self.counter_evidence_refs) {
            *id = renamed(id, kind, number);
        }
        self.reasoning = format!("{kind} {named:?}: {}", self.reasoning);
        self
    }
}

/// The causes that rules find, what explains others first, and what at most adds to them last.
pub fn judge(rules: &[Rule], exhibits: &Exhibits) -> Vec<Cause> {
    let drafts = rules.iter().filter_map(|rule| rule(exhibits));
    let mut causes: Vec<Cause> = drafts.filter_map(|draft| Cause::of(draft, exhibits)).collect();
    let only_adds = |c: &Cause| c.severity == Severity::Info && c.confidence == Confidence::Low;
    causes.sort_by_key(|c| (only_adds(c), c.code));
    causes
}
