//! Keys and values of etcd, whoever wrote them: a state is loaded from them, and groups are read.

use std::sync::Arc;

use bytes::Bytes;
use strandline_metadata::backend::embedded::Embedded;
use strandline_metadata::backend::{Backend, Op, Txn};
use strandline_metadata::keys::{Key, Keyspace};
use strandline_metadata::replica::{NoObserver, Replica};
use strandline_metadata::{brokers, groups, invariants};
use strandline_storage::store::{ObjectStoreBackend, Store};

use crate::{pieces, world};

pub(crate) const CLUSTER: &str = "t";

/// Keys behind the cluster's prefix, and their values, in turns.
pub(crate) fn run(data: &[u8]) {
    let keys = Keyspace::new(CLUSTER).expect("a name");
    world::block_on(async {
        let backend: Arc<dyn Backend> = Arc::new(Embedded::in_memory());
        let store: Arc<dyn Store> = Arc::new(ObjectStoreBackend::memory());
        let mut named = vec!["g".to_owned()];
        for pair in pieces(data).chunks(2) {
            let [key, value] = pair else { break };
            let key = Bytes::from([format!("/strandline/{CLUSTER}/").as_bytes(), key].concat());
            if let Some(Key::Group(group) | Key::Offsets { group, .. }) = keys.parse(&key) {
                named.push(group);
            }
            let put = Op::put(key, Bytes::copy_from_slice(value));
            let txn = Txn { compares: Vec::new(), then: vec![put], otherwise: Vec::new() };
            // A key that is no key is refused.
            let _ = backend.txn(txn).await;
        }
        let _ = brokers::read_cluster(backend.as_ref(), &keys).await;
        for group in named {
            let _ = groups::read(backend.as_ref(), &keys, &group).await;
        }
        let opened = Replica::open(backend, keys, store, Box::new(NoObserver)).await;
        if let Ok((replica, ..)) = opened
            && let Err(violation) = replica.read(|view| invariants::check(&view.state))
        {
            panic!("{violation}");
        }
    });
}
