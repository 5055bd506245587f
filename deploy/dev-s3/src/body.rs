//! The bytes of a request, and whether they are the ones that the client meant to send.

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::HeaderMap;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
use s3s::dto::StreamingBlob;
use s3s::{S3Result, TrailingHeaders, s3_error};

/// Objects smaller than this are copied into one buffer; larger ones stay in the buffers that they
/// came in.
const KEEP_PIECES_FROM_BYTES: usize = 64 * 1024;

/// The header (or trailer) of each checksum that a client may send.
const CHECKSUM_HEADERS: [&str; 5] = [
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
];

/// An object's bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) size: u64,
    /// CRC-64/NVME of all of it.
    pub(crate) crc64: u64,
}

impl Content {
    /// Contents one after the other, as a multipart upload joins them.
    pub(crate) fn joined(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut pieces = Vec::new();
        let mut size = 0;
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        for part in parts {
            for piece in &part.pieces {
                digest.update(piece);
            }
            size += part.size;
            pieces.extend(part.pieces);
        }
        Self { pieces, size, crc64: digest.finalize() }
    }
}

/// Reads a request's body and checks its length and every checksum that came with it.
pub(crate) async fn read(
    body: Option<StreamingBlob>,
    content_length: Option<i64>,
    headers: &HeaderMap,
    trailers: Option<&TrailingHeaders>,
) -> S3Result<Content> {
    let promised = |name: &str| -> Option<String> {
        let of = |map: &HeaderMap| map.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        of(headers).or_else(|| trailers.and_then(|trailers| trailers.read(of).flatten()))
    };
    // Trailers are known only at the end, but announced at the beginning.
    let announced = headers.get("x-amz-trailer").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wanted =
        |name: &str| headers.contains_key(name) || announced.split(',').any(|other| other.trim() == name);
    let mut hasher = ChecksumHasher {
        crc32: wanted("x-amz-checksum-crc32").then(Crc32::new),
        crc32c: wanted("x-amz-checksum-crc32c").then(Crc32c::new),
        sha1: wanted("x-amz-checksum-sha1").then(Sha1::new),
        sha256: wanted("x-amz-checksum-sha256").then(Sha256::new),
        crc64nvme: wanted("x-amz-checksum-crc64nvme").then(Crc64Nvme::new),
    };
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut size = 0;
    if let Some(mut body) = body {
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| s3_error!(IncompleteBody, "the body ends early: {}", error))?;
            hasher.update(&piece);
            digest.update(&piece);
            size += piece.len();
            pieces.push(piece);
        }
    }
    if content_length.is_some_and(|length| usize::try_from(length) != Ok(size)) {
        return Err(s3_error!(IncompleteBody, "the body has another length than its header says"));
    }
    let sums = hasher.finalize();
    let computed = [
        sums.checksum_crc32,
        sums.checksum_crc32c,
        sums.checksum_crc64nvme,
        sums.checksum_sha1,
        sums.checksum_sha256,
    ];
    for (name, sum) in CHECKSUM_HEADERS.into_iter().zip(computed) {
        if sum.is_some() && promised(name) != sum {
            return Err(s3_error!(BadDigest, "the {} does not match the body", name));
        }
    }
    if size < KEEP_PIECES_FROM_BYTES {
        let mut whole = BytesMut::with_capacity(size);
        for piece in &pieces {
            whole.extend_from_slice(piece);
        }
        pieces = vec![whole.freeze()];
    }
    Ok(Content { pieces, size: size as u64, crc64: digest.finalize() })
}
