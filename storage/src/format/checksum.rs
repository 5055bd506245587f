//! CRC-32C (Castagnoli) of bytes, put together from those of their parts.
//!
//! A producer's batch brings its CRC along, and it is checked once, when it comes. The checksums of
//! a partition's range and of the whole object follow from it by arithmetic, without another pass
//! over the bytes. So they also tell of what has changed in this process between the check and the
//! PUT, which sums made of the bytes again would not.

/// Castagnoli's polynomial, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x to the power of 2^n modulo the polynomial: what shifts a sum by 2^n bits.
const POWERS: [u32; 64] = {
    let mut powers = [0; 64];
    // x itself.
    let mut power = 1 << 30;
    let mut n = 0;
    while n < powers.len() {
        powers[n] = power;
        power = multiply(power, power);
        n += 1;
    }
    powers
};

/// The product of two polynomials modulo Castagnoli's.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 1_u32 << 31;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 == 0 { b >> 1 } else { (b >> 1) ^ POLYNOMIAL };
        bit >>= 1;
    }
    product
}

/// The CRC-32C of some bytes, and how many they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Crc32c {
    value: u32,
    bytes: u64,
}

impl Crc32c {
    /// Of no bytes.
    pub const EMPTY: Self = Self { value: 0, bytes: 0 };

    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { value: crc_fast::crc32_iscsi(bytes), bytes: bytes.len() as u64 }
    }

    /// Of `bytes` bytes that are known to have this CRC.
    pub const fn known(value: u32, bytes: u64) -> Self {
        Self { value, bytes }
    }

    /// The CRC itself.
    pub const fn value(self) -> u32 {
        self.value
    }

    /// Of how many bytes it is.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Of these bytes followed by those of `next`.
    #[must_use]
    pub fn followed_by(self, next: Self) -> Self {
        // Appending n bytes multiplies by x to the power of 8 n.
        let mut value = self.value;
        let mut bytes = next.bytes;
        let mut power = POWERS.iter().skip(3);
        while bytes != 0 && value != 0 {
            let Some(&factor) = power.next() else { break };
            if bytes & 1 == 1 {
                value = multiply(factor, value);
            }
            bytes >>= 1;
        }
        Self { value: value ^ next.value, bytes: self.bytes + next.bytes }
    }
}

/// The CRC-32C of bytes that come one after the other.
#[derive(Debug)]
pub struct RunningCrc32c {
    digest: crc_fast::Digest,
    bytes: u64,
}

impl Default for RunningCrc32c {
    fn default() -> Self {
        Self { digest: crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi), bytes: 0 }
    }
}

impl RunningCrc32c {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Of all bytes so far.
    pub fn sum(&self) -> Crc32c {
        // A CRC of 32 bits, in the type of all of them.
        let value = u32::try_from(self.digest.finalize()).unwrap_or(u32::MAX);
        Crc32c { value, bytes: self.bytes }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn the_check_value_is_castagnolis() {
        assert_eq!(Crc32c::of(b"123456789"), Crc32c::known(0xe306_9283, 9));
        assert_eq!(Crc32c::of(b""), Crc32c::EMPTY);
    }

    #[test]
    fn the_sum_of_parts_is_that_of_the_whole() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut bytes = vec![0; 300_000];
        rng.fill(&mut bytes[..]);
        for _ in 0..200 {
            let end = rng.random_range(0..bytes.len());
            let middle = rng.random_range(0..=end);
            let (head, tail) = bytes[..end].split_at(middle);
            assert_eq!(Crc32c::of(head).followed_by(Crc32c::of(tail)), Crc32c::of(&bytes[..end]));
        }
    }

    #[test]
    fn a_running_sum_is_that_of_all_bytes() {
        let mut running = RunningCrc32c::default();
        assert_eq!(running.sum(), Crc32c::EMPTY);
        for piece in [&b"1234"[..], b"", b"56789"] {
            running.update(piece);
        }
        assert_eq!(running.sum(), Crc32c::known(0xe306_9283, 9));
    }

    #[test]
    fn lengths_beyond_any_buffer_are_combined_as_a_library_does() {
        let algorithm = crc_fast::CrcAlgorithm::Crc32Iscsi;
        for bytes in [1, 21, 1 << 20, (1 << 32) + 7, 1 << 40] {
            let (a, b) = (0x1234_5678, 0x9abc_def0);
            let expected = crc_fast::checksum_combine(algorithm, u64::from(a), u64::from(b), bytes);
            let combined = Crc32c::known(a, 3).followed_by(Crc32c::known(b, bytes));
            assert_eq!(u64::from(combined.value()), expected, "{bytes} bytes");
            assert_eq!(combined.bytes(), bytes + 3);
        }
    }
}
