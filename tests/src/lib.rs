//! The whole system from outside: a small Kafka client, processes to start and to break,
//! benchmarks.
//!
//! Nothing here knows the insides of the product; it speaks to it over sockets, as its users do.

pub mod checker;
pub mod client;
pub mod cluster;
pub mod ctl;
pub mod history;
pub mod http;
pub mod member;
pub mod observer;
pub mod process;
pub mod producer;
pub mod proxy;
pub mod records;
pub mod single;
pub mod surroundings;
pub mod table;
pub mod tail;
pub mod transactions;
pub mod workload;
