//! What was last read of etcd, so that only what changed since has to be read again. Pure:
//! `etcd.rs` asks etcd.
//!
//! For each family of keys: all of its keys as of one revision, what they say, and the family's
//! part of a [`View`], once. That is as much as one whole read returns; views share it until it
//! changes.
//!
//! **Why nothing deleted is missed.** Let K be the keys that are known of some families, each
//! family as of a revision that is L or younger, and A what etcd answers as of a revision R,
//! younger than all of these: the keys that are there at R and were put after L. A key that is
//! there at R and not in A was put at L or before and has not been touched since: it is in K, with
//! the same value. So the keys of R are those of A and some of those of K that are not in A, and
//! etcd's count of them, which takes no notice of L, is that of K and A together exactly if none of
//! K was deleted. One that was deleted and created again is in A, and one that was created in place
//! of another adds to K and A together but not to the count. If the count is any other, the
//! families are read whole.
//!
//! **What this rests on**: that there is one history. etcd's history is another one after a restore
//! from a backup, for which every member of the cluster must be stopped. Then watches end and reads
//! fail, and both make `etcd.rs` forget everything, as a revision that goes back does. Whatever
//! else may happen, nothing is kept longer than [`REREAD_AFTER`] without being read whole and
//! decoded anew.

use std::collections::HashMap;

use bytes::Bytes;
use strandline_metadata::backend::KeyValue;
use tokio::time::Instant;

use super::need::{FAMILIES, Families, Family, Need};
use super::view::{Decoded, View, decode};
use crate::limits::REREAD_AFTER;

/// What is kept. The default is nothing.
#[derive(Debug, Default)]
pub(super) struct CachedView {
    known: [Option<CachedFamily>; FAMILIES],
    /// What is known says this.
    view: View,
}

/// A family of keys as of a revision.
#[derive(Debug)]
struct CachedFamily {
    revision: i64,
    /// When it was last read whole.
    whole_at: Instant,
    keys: Keys,
    /// How many of its values this build cannot read.
    unreadable: usize,
}

/// Keys, each with its mod revision and what it says.
type Keys = HashMap<Bytes, (i64, Decoded)>;

impl CachedView {
    /// Families, read whole at `revision`. What `before` knows already is not decoded again.
    pub(super) fn whole(
        by_family: &Families,
        families: Need,
        revision: i64,
        whole_at: Instant,
        kvs: Vec<KeyValue>,
        before: Option<&Self>,
    ) -> Self {
        let mut kept = Self::default();
        for family in families.families() {
            let known = CachedFamily { revision, whole_at, keys: Keys::new(), unreadable: 0 };
            kept.known[family.index()] = Some(known);
        }
        for kv in kvs {
            let Some(family) = by_family.of(&kv.key) else { continue };
            let decoded = before.and_then(|before| before.known[family.index()].as_ref()?.keys.get(&kv.key));
            let decoded =
                decoded.filter(|(at, _)| *at == kv.mod_revision).map(|(_, decoded)| decoded.clone());
            kept.put(by_family, family, kv, decoded);
        }
        kept
    }

    /// The newest revision of which anything is known.
    pub(super) fn newest(&self) -> Option<i64> {
        self.known.iter().flatten().map(|known| known.revision).max()
    }

    /// After which revision these families have to be read. `None` if they have to be read whole.
    pub(super) fn since(&self, families: Need, now: Instant) -> Option<i64> {
        let known: Option<Vec<&CachedFamily>> =
            families.families().map(|f| self.known[f.index()].as_ref()).collect();
        let known = known?;
        let is_fresh = known.iter().all(|k| now.saturating_duration_since(k.whole_at) < REREAD_AFTER);
        known.iter().map(|k| k.revision).min().filter(|_| is_fresh)
    }

    /// Takes what was put to families after the revision `after`, as it is at `revision`, at which
    /// they have `count` keys. False, and nothing is changed, if the families have to be read whole
    /// to know what they are at `revision`.
    pub(super) fn add(
        &mut self,
        by_family: &Families,
        families: Need,
        (after, revision): (i64, i64),
        kvs: Vec<KeyValue>,
        count: usize,
    ) -> bool {
        let mut expected = 0;
        for family in families.families() {
            // It may have been forgotten meanwhile, or read by somebody else.
            let Some(known) = &self.known[family.index()] else { return false };
            if known.revision < after || known.revision > revision {
                return false;
            }
            expected += known.keys.len();
        }
        let family_of = |kv: &KeyValue| by_family.of(&kv.key).filter(|f| families.has(f.need()));
        let Some(of): Option<Vec<Family>> = kvs.iter().map(family_of).collect() else { return false };
        let is_new = |(kv, family): &(&KeyValue, &Family)| {
            self.known[family.index()].as_ref().is_some_and(|known| !known.keys.contains_key(&kv.key))
        };
        expected += kvs.iter().zip(&of).filter(is_new).count();
        if expected != count {
            return false;
        }
        for (kv, family) in kvs.into_iter().zip(of) {
            self.put(by_family, family, kv, None);
        }
        for family in families.families() {
            if let Some(known) = &mut self.known[family.index()] {
                known.revision = revision;
            }
        }
        true
    }

    /// Takes over families that were read whole, unless what is known of them is younger.
    pub(super) fn adopt(&mut self, families: Need, mut fresh: Self) {
        for family in families.families() {
            let (old, new) = (&mut self.known[family.index()], &mut fresh.known[family.index()]);
            if old.as_ref().map(|k| k.revision) <= new.as_ref().map(|k| k.revision) {
                *old = new.take();
                self.view.take_part(family, &fresh.view);
            }
        }
    }

    /// Lets a view have what is known of families.
    pub(super) fn show(&self, families: Need, view: &mut View) {
        for family in families.families() {
            view.take_part(family, &self.view);
            view.unreadable += self.known[family.index()].as_ref().map_or(0, |known| known.unreadable);
        }
    }

    /// Takes one key of a family, which may be known by an older value.
    fn put(&mut self, by_family: &Families, family: Family, kv: KeyValue, decoded: Option<Decoded>) {
        let Some(known) = &mut self.known[family.index()] else { return };
        let parsed = by_family.keys.parse(&kv.key);
        let decoded =
            decoded.unwrap_or_else(|| parsed.as_ref().map_or(Decoded::Other, |key| decode(key, &kv)));
        known.unreadable += usize::from(matches!(decoded, Decoded::Unreadable));
        let before = known.keys.insert(kv.key, (kv.mod_revision, decoded.clone()));
        known.unreadable -= usize::from(matches!(before, Some((_, Decoded::Unreadable))));
        if let Some(key) = parsed {
            self.view.put(key, decoded);
        }
    }
}
