//! Faults of real processes under load: whatever happens, nothing that was acknowledged is lost or
//! doubled, every broker returns the same bytes, every producer gets an answer or an error that it
//! tries again on, and the brokers come back by themselves.
//!
//! Each test has a cluster of its own; they take turns.

mod damage;
mod etcd;
mod flood;
mod groups;
mod jobs;
mod kill;
mod net;
mod s3;
mod topics;
