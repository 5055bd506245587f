//! What to do about a cause: an action, its risk, and how to see that it worked.

use super::Code;

/// A recommendation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What to do.
    pub action: &'static str,
    /// What may go wrong.
    pub risk: &'static str,
    /// How to see that it worked.
    pub verification: &'static str,
}

const fn one(action: &'static str, risk: &'static str, verification: &'static str) -> Advice {
    Advice { action, risk, verification }
}

/// What to do about a cause; `None` if nothing is to be done.
#[expect(clippy::too_many_lines, reason = "it is a table with an entry per cause")]
pub const fn advice(code: Code) -> Option<Advice> {
    Some(match code {
        Code::EtcdUnreachable => one(
            "look at etcd's own health, and at this observer's way to it",
            "none by looking; do not restart brokers, they could not register",
            "observer_status shows etcd reachable",
        ),
        Code::NoBrokers => one(
            "look at the logs of the brokers' processes for what they share, then start them",
            "none for data: brokers keep nothing",
            "describe_brokers lists them as leased",
        ),
        Code::StorageDenied => one(
            "renew the brokers' credentials for the object store, or correct its policy; check clocks",
            "restart brokers one at a time, so that the others serve",
            "diagnose_storage is healthy",
        ),
        Code::StorageFailing | Code::StorageErrors => one(
            "look at the object store's own status and at the network to it; brokers recover by themselves",
            "none by waiting: what was acknowledged is safe",
            "storage_status: state ok and error_rate 0",
        ),
        Code::StorageThrottled => one(
            "raise the request limit at the provider, or lower put_budget_per_s",
            "fewer PUTs let records wait longer; settings need a restart",
            "storage_status: throttled_per_s is 0",
        ),
        Code::StorageSlow => one(
            "look at the object store's own latency; let producers have more requests in flight and larger batches",
            "memory in producers",
            "query_metric s3_put_p99 falls",
        ),
        Code::CommitFailing => one(
            "check etcd for the alarm NOSPACE, its quota and the brokers' rights",
            "defragmenting blocks a member while it runs",
            "query_metric flush_failures stands still",
        ),
        Code::EtcdSlow => one(
            "look at the disks of etcd and at who else uses it",
            "moving members may change the leader",
            "query_metric commit_p99 falls",
        ),
        Code::EtcdNearlyFull => one(
            "look at what fills etcd, set its auto-compaction and defragment it, or raise its quota",
            "at 95 % producers wait a second for each flush; defragmenting blocks a member while it runs",
            "readyz of the brokers says nothing of writes that are slowed",
        ),
        Code::StateCrowded => one(
            "look at diagnose_storage and the brokers' strandline_merge_* metrics; raise merge_bytes_per_s and merge_memory_bytes, or shorten retention",
            "more reads and writes at the object store; producers are refused at max_state_ranges",
            "readyz of the brokers says nothing of writes that are slowed",
        ),
        Code::BrokerBehind => one(
            "look at that broker's processor and its network to etcd",
            "restarting it lets it read the state anew",
            "query_metric watch_lag falls",
        ),
        Code::BrokerDown => one(
            "find out why its process ended, then start it or another broker",
            "none for data; its cache is cold",
            "describe_brokers lists it as leased, with scrape ok",
        ),
        Code::BrokerRestarting | Code::BrokerUnregistered => one(
            "read the broker's log: etcd out of its reach, memory, or a node id that is used twice",
            "stopping it moves its load to the others",
            "recent_changes shows no new registration",
        ),
        Code::BrokerDraining => {
            one("wait until it is gone", "none", "describe_brokers no longer lists it as draining")
        }
        Code::NoJobHolder => one(
            "wait for the lease of the last holder to end; if it stays, read the brokers' logs",
            "without jobs nothing is deleted and the log in etcd grows",
            "describe_brokers: a broker has jobs",
        ),
        Code::HotPartition => one(
            "spread the hot key over several, or give it a topic of its own",
            "order holds per key only",
            "get_group_lag: produce rates of the partitions are alike",
        ),
        Code::ConsumerStalled => one(
            "look at the members' own logs and stacks, then restart those that hang",
            "each restart is a rebalance",
            "get_group_lag: consume_rate is above 0",
        ),
        Code::ConsumerSlow => one(
            "make the work per record cheaper, or add members up to the number of partitions",
            "a rebalance; longer polls may exceed max.poll.interval.ms",
            "get_group_lag: trend shrinking",
        ),
        Code::ProducerSurge => one(
            "find the producer; if it goes on, add members up to the number of partitions",
            "a rebalance",
            "get_group_lag: trend shrinking",
        ),
        Code::RebalanceStorm => one(
            "find the member that comes and goes: silent for too long, too long between polls, or crashing",
            "longer time-outs notice dead members later",
            "recent_changes: no new generation for five minutes",
        ),
        Code::EmptyGroup => one(
            "start the application, or delete the group if nobody needs it",
            "deleting a group deletes its offsets",
            "describe_group: members are there",
        ),
        Code::OpenTransaction => one(
            "find the producer with this transactional id and let it commit or abort; one that is gone is aborted when its time-out is over (describe_transaction: times_out_at), or at once when it starts again with the same id",
            "an aborted transaction's records are never shown; a shorter transaction.timeout.ms, which is the producer's choice, aborts work that takes long",
            "get_partition_offsets: held_back is 0",
        ),
        Code::OffsetsOutOfRange => one(
            "let the owner of the data choose between log start and end; plan_reset_offsets shows what each means",
            "what is skipped stays unread",
            "get_group_lag: out_of_range is 0",
        ),
        Code::RetentionOvertaking => one(
            "raise the topic's retention first, then speed the group up",
            "storage costs",
            "check_replay_readiness: verdict safe",
        ),
        Code::NeverCommitted => one(
            "ask whether the application commits at all, or keeps its offsets itself",
            "none",
            "fetch_offsets shows commits",
        ),
        Code::MetricsBlind => one(
            "look at observer_status for the reason, and at metrics_hosts and the broker's HTTP port",
            "a wide metrics_hosts lets the observer connect to more",
            "observer_status: every scrape is ok",
        ),
        Code::TokenExpiring => one(
            "ask for a new token and keep the old one valid until it is in use",
            "two tokens are valid for that time",
            "explain_access: expires_at is later",
        ),
        Code::NoLag => return None,
    })
}
