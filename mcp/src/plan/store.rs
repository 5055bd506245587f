//! Plans that were made, for as long as they are good; in memory, bounded, each for who asked for
//! it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::Draft;
use crate::limits::{PLAN_TTL, PLANS_KEPT};

#[derive(Debug)]
struct StoredPlan {
    id: String,
    principal: String,
    expires_at_ms: i64,
    draft: Draft,
}

/// The newest plans.
#[derive(Debug, Default)]
pub struct Plans {
    kept: Mutex<VecDeque<StoredPlan>>,
}

impl Plans {
    /// Keeps a plan; answers when it ends, ms since 1970. When there are too many, the oldest goes.
    pub fn keep(&self, id: &str, principal: &str, now_ms: i64, draft: Draft) -> i64 {
        let expires_at_ms = now_ms + i64::try_from(PLAN_TTL.as_millis()).unwrap_or(i64::MAX / 2);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.len() >= PLANS_KEPT {
            kept.pop_front();
        }
        kept.push_back(StoredPlan {
            id: id.to_owned(),
            principal: principal.to_owned(),
            expires_at_ms,
            draft,
        });
        expires_at_ms
    }

    /// The plan of this id that this principal made, and when it ends. Those of others do not
    /// exist.
    pub fn find(&self, id: &str, principal: &str) -> Option<(Draft, i64)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().find(|k| k.id == id && k.principal == principal)?;
        Some((found.draft.clone(), found.expires_at_ms))
    }
}
