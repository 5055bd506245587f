//! What consumers of the classic protocol say to each other through the group: subscriptions and
//! assignments.
//!
//! Brokers need not understand it, except where a group has members of both protocols, and to know
//! which topics a classic group reads. The bytes come from strangers: nothing is allocated because
//! a count says so, only because elements are there. Versions beyond the last one known are read as
//! the last one, and what follows is left alone, as Kafka does it.
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
    Reader(bytes).subscription().ok()
}

/// Reads an assignment.
pub(crate) fn assignment(bytes: &[u8]) -> Option<ClassicAssignment> {
    Reader(bytes).assignment().ok()
}

/// Writes an assignment for a consumer whose subscription has this version. None if it is too large
/// for the format.
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

/// The bytes are not what they should be. How, nobody asks.
struct Malformed;

type Read<T> = Result<T, Malformed>;

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn subscription(&mut self) -> Read<Subscription> {
        let version = self.version()?;
        let mut subscription = Subscription {
            version,
            topics: self.array(Self::string)?,
            user_data: self.nullable_bytes()?,
            generation: -1,
            ..Subscription::default()
        };
        if version >= 1 {
            subscription.owned_partitions = self.array(Self::topic)?;
        }
        if version >= 2 {
            subscription.generation = self.int32()?;
        }
        if version >= 3 {
            subscription.rack_id = self.nullable_string()?;
        }
        Ok(subscription)
    }

    fn assignment(&mut self) -> Read<ClassicAssignment> {
        self.version()?;
        Ok(ClassicAssignment { partitions: self.array(Self::topic)?, user_data: self.nullable_bytes()? })
    }

    fn topic(&mut self) -> Read<TopicPartitions> {
        Ok(TopicPartitions { topic: self.string()?, partitions: self.array(Self::int32)? })
    }

    fn version(&mut self) -> Read<i16> {
        self.int16().and_then(|version| if version < 0 { Err(Malformed) } else { Ok(version) })
    }

    fn string(&mut self) -> Read<String> {
        self.nullable_string()?.ok_or(Malformed)
    }

    fn nullable_string(&mut self) -> Read<Option<String>> {
        let length = self.int16()?;
        let Some(bytes) = self.nullable(length.into())? else { return Ok(None) };
        Ok(Some(str::from_utf8(bytes).map_err(|_| Malformed)?.to_owned()))
    }

    fn nullable_bytes(&mut self) -> Read<Option<Vec<u8>>> {
        let length = self.int32()?;
        Ok(self.nullable(length)?.map(<[u8]>::to_vec))
    }

    fn nullable(&mut self, length: i32) -> Read<Option<&'a [u8]>> {
        match length {
            -1 => Ok(None),
            _ => self.take(usize::try_from(length).map_err(|_| Malformed)?).map(Some),
        }
    }

    /// Every element takes at least a byte, so a count that lies ends with the bytes.
    fn array<T>(&mut self, element: fn(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let count = usize::try_from(self.int32()?).map_err(|_| Malformed)?;
        if count > self.0.len() {
            return Err(Malformed);
        }
        let mut elements = Vec::new();
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Ok(elements)
    }

    fn int16(&mut self) -> Read<i16> {
        self.take(2)?.try_into().map(i16::from_be_bytes).map_err(|_| Malformed)
    }

    fn int32(&mut self) -> Read<i32> {
        self.take(4)?.try_into().map(i32::from_be_bytes).map_err(|_| Malformed)
    }

    fn take(&mut self, count: usize) -> Read<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests;
