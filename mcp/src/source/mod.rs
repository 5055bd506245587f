//! Where answers come from: etcd by range reads, the brokers' metrics by a scrape loop of its own,
//! and what both left behind in memory. Nothing here can write, and nothing connects to a broker's
//! Kafka port or to the object store.

pub mod changes;
pub mod etcd;
pub mod exposition;
pub mod history;
mod kept;
mod need;
pub mod progress;
pub mod scrape;
pub mod view;
