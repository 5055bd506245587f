//! What consumers of the classic protocol say to each other through the group: subscriptions and assignments.
//!
//! Brokers need not understand it, except where a group has members of both protocols, and to know which topics a classic
//! group reads. The bytes come from strangers: nothing is allocated because a count says so, only because elements are
//! there. Versions beyond the last one known are read as the last one, and what follows is left alone, as Kafka does it.
//!
//! ```text
//! Subscription => version:int16 [topic:string] user_data:bytes?
//!                 v1: [topic:string [partition:int32]]  v2: generation:int32  v3: rack:string?
//! Assignment   => version:int16 [topic:string [partition:int32]] user_data:bytes?
//! ```

use bytes::{BufMut, Bytes, BytesMut};

/// The last version that there is.
const LAST_VERSION: i16 = 3;

/// What a consumer says when it joins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subscription {
    /// Version of the format.
    pub(crate) version: i16,
    /// The topics that it subscribes to.
    pub(crate) topics: Vec<String>,
    /// What only its assignor understands.
    pub(crate) user_data: Option<Vec<u8>>,
    /// The partitions that it has and keeps meanwhile, from version 1 on.
    pub(crate) owned_partitions: Vec<TopicPartitions>,
    /// The generation that it has them from, from version 2 on; −1 if it does not say.
    pub(crate) generation: i32,
    /// Its rack, from version 3 on.
    pub(crate) rack_id: Option<String>,
}

/// What a leader assigned to a consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClassicAssignment {
    /// The partitions.
    pub(crate) partitions: Vec<TopicPartitions>,
    /// What only the assignor understands.
    pub(crate) user_data: Option<Vec<u8>>,
}

/// Partitions of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TopicPartitions {
    /// Name of the topic.
    pub(crate) topic: String,
    /// The partitions, as they were said.
    pub(crate) partitions: Vec<i32>,
}

/// Reads a subscription.
pub(crate) fn subscription(bytes: &[u8]) -> Option<Subscription> {
    let mut rest = Reader(bytes);
    let version = rest.version()?;
    let mut subscription = Subscription {
        version,
        topics: rest.array(Reader::string)?,
        user_data: rest.nullable_bytes()?,
        generation: -1,
        ..Subscription::default()
    };
    if version >= 1 {
        subscription.owned_partitions = rest.array(Reader::topic)?;
    }
    if version >= 2 {
        subscription.generation = rest.int32()?;
    }
    if version >= 3 {
        subscription.rack_id = rest.nullable_string()?;
    }
    Some(subscription)
}

/// Reads an assignment.
pub(crate) fn assignment(bytes: &[u8]) -> Option<ClassicAssignment> {
    let mut rest = Reader(bytes);
    rest.version()?;
    Some(ClassicAssignment { partitions: rest.array(Reader::topic)?, user_data: rest.nullable_bytes()? })
}

/// Writes an assignment for a consumer whose subscription has this version. None if it is too large for the format.
pub(crate) fn encode_assignment(version: i16, partitions: &[TopicPartitions]) -> Option<Bytes> {
    let mut bytes = BytesMut::new();
    bytes.put_i16(version.clamp(0, LAST_VERSION));
    bytes.put_i32(i32::try_from(partitions.len()).ok()?);
    for topic in partitions {
        bytes.put_i16(i16::try_from(topic.topic.len()).ok()?);
        bytes.put_slice(topic.topic.as_bytes());
        bytes.put_i32(i32::try_from(topic.partitions.len()).ok()?);
        for partition in &topic.partitions {
            bytes.put_i32(*partition);
        }
    }
    bytes.put_i32(-1);
    Some(bytes.freeze())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn int16(&mut self) -> Option<i16> {
        Some(i16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn int32(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn version(&mut self) -> Option<i16> {
        self.int16().filter(|version| *version >= 0)
    }

    fn string(&mut self) -> Option<String> {
        self.nullable_string()?
    }

    fn nullable_string(&mut self) -> Option<Option<String>> {
        let length = self.int16()?;
        if length == -1 {
            return Some(None);
        }
        let bytes = self.take(usize::try_from(length).ok()?)?;
        Some(Some(str::from_utf8(bytes).ok()?.to_owned()))
    }

    fn nullable_bytes(&mut self) -> Option<Option<Vec<u8>>> {
        let length = self.int32()?;
        if length == -1 {
            return Some(None);
        }
        Some(Some(self.take(usize::try_from(length).ok()?)?.to_vec()))
    }

    /// Every element takes at least a byte, so a count that lies ends with the bytes.
    fn array<T>(&mut self, element: fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = usize::try_from(self.int32()?).ok()?;
        if count > self.0.len() {
            return None;
        }
        let mut elements = Vec::new();
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Some(elements)
    }

    fn topic(&mut self) -> Option<TopicPartitions> {
        Some(TopicPartitions { topic: self.string()?, partitions: self.array(Self::int32)? })
    }
}
