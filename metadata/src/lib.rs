//! What Strandline keeps in etcd: the ordered keyspace, the state machine that gives it meaning, its snapshots.
#![cfg_attr(test, allow(clippy::cast_possible_wrap, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small test numbers"))]

pub mod backend;
