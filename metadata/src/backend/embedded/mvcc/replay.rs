//! From records to a store and back: what a journal is read into, and what a rewritten one begins
//! with.

use super::{FIRST_REVISION, Lease, Mvcc, Version};
use crate::backend::Event;
use crate::backend::embedded::record::{Change, Record};
use std::collections::BTreeSet;

impl Mvcc {
    /// Records that make this store, with its history, from an empty one.
    pub(in crate::backend::embedded) fn snapshot(&self) -> Vec<Record> {
        let mut records = vec![Record::Base { oldest: self.oldest, last_lease: self.last_lease }];
        records.extend(self.leases().map(|(lease, ttl_s)| Record::Granted { lease, ttl_s }));
        let versions = self.keys.values().filter_map(|versions| {
            let visible = versions.partition_point(|version| version.revision <= self.oldest);
            versions.get(visible.checked_sub(1)?)?.value.clone()
        });
        records.extend(versions.map(Record::BaseKey));
        for (revision, events) in (self.first_in_history()..).zip(&self.history) {
            let changes = events.iter().map(Change::of).collect();
            records.push(if revision == self.oldest {
                Record::BaseEvents(changes)
            } else {
                Record::Committed { revision, changes }
            });
        }
        records.push(Record::BaseEnd { revision: self.revision });
        records
    }

    /// Repeats what a record says was done.
    pub(in crate::backend::embedded) fn replay(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Committed { revision, changes } => {
                if revision != self.revision + 1 {
                    return Err(format!("revision {revision} follows revision {}", self.revision));
                }
                let mut events = Vec::with_capacity(changes.len());
                for change in changes {
                    events.push(match change {
                        Change::Put { key, value, lease } => self.put_key(key, value, lease, revision),
                        Change::Delete { key } => self.delete_key(key, revision),
                    });
                }
                self.finish(revision, events);
            }
            Record::Granted { lease, ttl_s } => {
                self.leases.insert(lease, Lease { ttl_s, keys: BTreeSet::new() });
                self.last_lease = self.last_lease.max(lease);
            }
            Record::Ended { lease, revision } => {
                self.end_lease(lease).map_err(|error| error.to_string())?;
                if self.revision != revision {
                    return Err(format!(
                        "ending lease {lease} led to revision {}, not {revision}",
                        self.revision
                    ));
                }
            }
            Record::Compacted { revision } => {
                self.compact(revision).map_err(|error| error.to_string())?;
            }
            Record::Base { oldest, last_lease } => {
                if !self.is_new() {
                    return Err("a snapshot in the middle of history".to_owned());
                }
                (self.oldest, self.revision, self.last_lease) = (oldest, oldest, last_lease);
            }
            Record::BaseKey(kv) => {
                if let Some(holder) = self.leases.get_mut(&kv.lease) {
                    holder.keys.insert(kv.key.clone());
                }
                self.keys
                    .insert(kv.key.clone(), vec![Version { revision: kv.mod_revision, value: Some(kv) }]);
            }
            Record::BaseEvents(changes) => {
                let events =
                    changes.into_iter().map(|change| self.base_event(change)).collect::<Result<_, _>>()?;
                self.history.push_back(events);
            }
            Record::BaseEnd { revision } if revision == self.revision => {}
            Record::BaseEnd { revision } => {
                return Err(format!("a snapshot of revision {revision} leads to revision {}", self.revision));
            }
        }
        Ok(())
    }

    fn is_new(&self) -> bool {
        self.revision == FIRST_REVISION && self.keys.is_empty() && self.last_lease == 0
    }

    /// What happened at the oldest revision, of which a snapshot's keys are the result.
    fn base_event(&self, change: Change) -> Result<Event, String> {
        match change {
            Change::Delete { key } => Ok(Event::Delete { key, revision: self.oldest }),
            Change::Put { key, .. } => match self.newest(&key) {
                Some(kv) if kv.mod_revision == self.oldest => Ok(Event::Put(kv.clone())),
                _ => Err("a snapshot's history is not that of its keys".to_owned()),
            },
        }
    }
}
