//! The broker's topics, as groups see them.

use uuid::Uuid;

use super::Topics;
use crate::Broker;

/// Looks topics up in what the broker knows now.
pub(super) struct BrokerTopics<'a>(pub(super) &'a Broker);

impl Topics for BrokerTopics<'_> {
    fn by_name(&self, name: &str) -> Option<(Uuid, u32)> {
        self.0.replica.read(|view| view.names.topic(name).map(|t| (t.value.topic_id, t.value.partitions)))
    }

    fn name(&self, id: Uuid) -> Option<String> {
        self.0.replica.read(|view| view.names.topic_by_id(id).map(|t| t.name.clone()))
    }

    fn each(&self, each: &mut dyn FnMut(&str, Uuid, u32)) {
        self.0.replica.read(|view| {
            for (name, topic) in view.names.topics() {
                each(name, topic.value.topic_id, topic.value.partitions);
            }
        });
    }
}
