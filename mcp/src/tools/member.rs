//! What members of classic groups say to each other, as far as it is consumers who speak: their
//! subscriptions and assignments, in the bytes of Kafka's consumer protocol. Whatever cannot be
//! read is unknown, never an error.

use std::collections::BTreeMap;

/// The topics that a member subscribes to.
pub(crate) fn subscription(bytes: &[u8]) -> Option<Vec<String>> {
    let mut reader = Reader(bytes);
    reader.version()?;
    let count = reader.count()?;
    (0..count).map(|_| reader.text()).collect()
}

/// The partitions that a member was assigned, by topic.
pub(crate) fn assignment(bytes: &[u8]) -> Option<BTreeMap<String, Vec<i32>>> {
    if bytes.is_empty() {
        return Some(BTreeMap::new());
    }
    let mut reader = Reader(bytes);
    reader.version()?;
    let mut topics = BTreeMap::new();
    for _ in 0..reader.count()? {
        let topic = reader.text()?;
        let partitions = (0..reader.count()?).map(|_| reader.int()).collect::<Option<Vec<_>>>()?;
        topics.insert(topic, partitions);
    }
    Some(topics)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn version(&mut self) -> Option<i16> {
        self.take().map(i16::from_be_bytes).filter(|v| (0..=100).contains(v))
    }

    fn int(&mut self) -> Option<i32> {
        self.take().map(i32::from_be_bytes)
    }

    /// A count of entries, each of which takes two bytes at least.
    fn count(&mut self) -> Option<usize> {
        let count = usize::try_from(self.int()?).ok()?;
        (count <= self.0.len() / 2).then_some(count)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.take().map(i16::from_be_bytes)?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_consumers_say_is_read() {
        let bytes = [0, 1, 0, 0, 0, 2, 0, 1, b'a', 0, 2, b'b', b'c', 255, 255, 255, 255];
        assert_eq!(subscription(&bytes).unwrap(), ["a", "bc"]);
        let bytes = [0, 0, 0, 0, 0, 1, 0, 1, b'a', 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 5, 255, 255, 255, 255];
        assert_eq!(assignment(&bytes).unwrap(), BTreeMap::from([("a".to_owned(), vec![3, 5])]));
        assert_eq!(assignment(&[]).unwrap(), BTreeMap::new());
    }

    #[test]
    fn garbage_is_unknown() {
        for bad in [
            &[0u8][..],
            &[0, 1, 127, 255, 255, 255],
            &[0, 1, 0, 0, 0, 1, 0, 9, b'a'],
            &[0, 1, 255, 255, 255, 255],
        ] {
            assert_eq!(subscription(bad), None, "{bad:?}");
            assert_eq!(assignment(bad), None, "{bad:?}");
        }
    }
}
