//! The whole system from outside: a small Kafka client, processes to start and to break, benchmarks.
//!
//! Nothing here knows the insides of the product; it speaks to it over sockets, as its users do.

pub mod client;
pub mod records;
