//! Deleting much, without waiting long for a store that deletes nothing.

use tokio::time::Instant;

use super::Store;
use crate::error::StoreError;
use crate::limits::{BULK_DELETES_AT_ONCE, DELETES_AT_ONCE, DELETING_FOR};
use crate::path::ObjectKey;

/// Deletes objects for as long as the store deletes any of them, and others can wait. What became
/// of each, in the order of `keys`: those that the answer has no place for were not tried.
pub async fn delete_while_it_works(store: &dyn Store, keys: &[ObjectKey]) -> Vec<Result<(), StoreError>> {
    let together = match store.keys_per_delete() {
        0 | 1 => DELETES_AT_ONCE,
        keys => keys * BULK_DELETES_AT_ONCE,
    };
    let until = Instant::now() + DELETING_FOR;
    let mut results = Vec::new();
    for some in keys.chunks(together) {
        let done = store.delete_many(some).await;
        let is_in_vain = done.iter().all(Result::is_err);
        results.extend(done);
        if is_in_vain || Instant::now() >= until {
            break;
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::error::Operation;
    use crate::path::ObjectId;
    use crate::store::{FaultPlan, Faulty, ObjectStoreBackend};

    #[tokio::test(start_paused = true)]
    async fn a_store_that_deletes_nothing_or_slowly_is_not_waited_for() {
        let keys: Vec<ObjectKey> = (0..1_000).map(|number| ObjectId::write(1, number, 0).key()).collect();
        let store = Faulty::new(Arc::new(ObjectStoreBackend::memory()), 1);
        let plan = FaultPlan { one_by_one: true, ..FaultPlan::default() };
        store.handle().set(FaultPlan { error_before: 1.0, ..plan.clone() });
        assert_eq!(delete_while_it_works(&store, &keys).await.len(), DELETES_AT_ONCE);
        // Those that cannot be deleted stop nobody.
        let undeletable = keys[..DELETES_AT_ONCE - 1].to_vec();
        store.handle().set(FaultPlan { undeletable, ..plan.clone() });
        let results = delete_while_it_works(&store, &keys).await;
        assert_eq!(
            (results.len(), results.iter().filter(|r| r.is_err()).count()),
            (1_000, DELETES_AT_ONCE - 1)
        );
        let (second, two) = (Duration::from_secs(1), Duration::from_secs(2));
        store.handle().set(FaultPlan { delay: second..two, only: vec![Operation::Delete], ..plan });
        let tried = delete_while_it_works(&store, &keys).await.len();
        assert!((DELETES_AT_ONCE * 10..DELETES_AT_ONCE * 21).contains(&tried), "{tried}");
    }
}
