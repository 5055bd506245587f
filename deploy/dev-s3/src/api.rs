//! The S3 operations that are served, each as a call on [`Objects`] or [`Uploads`].

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Bucket, CommonPrefix,
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CreateBucketInput, CreateBucketOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteBucketInput, DeleteBucketOutput,
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag,
    Error, GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput, GetObjectOutput, HeadBucketInput,
    HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput,
    ListObjectsV2Input, ListObjectsV2Output, Object, PutObjectInput, PutObjectOutput, StreamingBlob,
    Timestamp, UploadPartInput, UploadPartOutput,
};
use s3s::{Body, S3, S3Error, S3Request, S3Response, S3Result, s3_error};
use tokio::task::spawn_blocking;

use crate::body;
use crate::faults::Faults;
use crate::objects::{Data, Meta, ObjectError, Objects};
use crate::uploads::{Uploads, part_etag};

/// S3's own bound on a page.
const MAX_KEYS: usize = 1000;
/// S3's own bound on the objects that one request deletes.
const MAX_DELETED: usize = 1000;
/// How much of a file is read at a time.
const FILE_PIECE_BYTES: u64 = 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Api {
    objects: Arc<Objects>,
    uploads: Uploads,
    faults: Arc<Faults>,
}

impl Api {
    pub(crate) fn new(objects: Arc<Objects>, faults: Arc<Faults>) -> Self {
        Self { objects, uploads: Uploads::default(), faults }
    }

    fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        if self.objects.has_bucket(bucket) { Ok(()) } else { Err(ObjectError::NoBucket.into()) }
    }
}

impl From<ObjectError> for S3Error {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::NoBucket => s3_error!(NoSuchBucket, "The specified bucket does not exist"),
            ObjectError::NoKey => s3_error!(NoSuchKey, "The specified key does not exist."),
            ObjectError::Exists => s3_error!(PreconditionFailed, "The object exists."),
            ObjectError::BucketExists => {
                s3_error!(BucketAlreadyOwnedByYou, "The bucket exists and is yours.")
            }
            ObjectError::NotEmpty => s3_error!(BucketNotEmpty, "The bucket is not empty."),
            ObjectError::KeyTooLong => {
                s3_error!(KeyTooLongError, "A segment of the key is too long for a file name.")
            }
            ObjectError::Io(error) => {
                tracing::error!(%error, "the folder fails");
                s3_error!(InternalError, "{}", error)
            }
        }
    }
}

fn length(bytes: u64) -> Option<i64> {
    i64::try_from(bytes).ok()
}

#[async_trait::async_trait]
impl S3 for Api {
    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let S3Request { input, headers, trailing_headers, .. } = req;
        self.check_bucket(&input.bucket)?;
        let content =
            body::read(input.body, input.content_length, &headers, trailing_headers.as_ref()).await?;
        let only_if_absent = match input.if_none_match {
            None => false,
            Some(condition) if condition.is_any() => true,
            Some(_) => return Err(s3_error!(NotImplemented, "If-None-Match takes only *")),
        };
        if input.if_match.is_some() {
            return Err(s3_error!(NotImplemented, "If-Match is not served"));
        }
        let meta = self.objects.put(input.bucket, input.key, content, only_if_absent).await?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(ETag::Strong(meta.etag)), ..Default::default() }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let (meta, data) = self.objects.get(input.bucket, input.key).await?;
        let (range, content_range) = match input.range {
            None => (0..meta.size, None),
            Some(range) => {
                let range = range.check(meta.size).map_err(|_| s3_error!(InvalidRange))?;
                let header = format!("bytes {}-{}/{}", range.start, range.end - 1, meta.size);
                (range, Some(header))
            }
        };
        Ok(S3Response::new(GetObjectOutput {
            content_length: length(range.end - range.start),
            content_range,
            accept_ranges: Some("bytes".to_owned()),
            last_modified: Some(Timestamp::from(meta.modified)),
            e_tag: Some(ETag::Strong(meta.etag)),
            body: Some(blob(data, range)),
            ..Default::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let Meta { size, modified, etag } = self.objects.head(&req.input.bucket, &req.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: length(size),
            accept_ranges: Some("bytes".to_owned()),
            last_modified: Some(Timestamp::from(modified)),
            e_tag: Some(ETag::Strong(etag)),
            ..Default::default()
        }))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        if self.faults.is_undeletable(&req.input.key) {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        self.objects.delete(req.input.bucket, req.input.key).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let DeleteObjectsInput { bucket, delete, .. } = req.input;
        self.check_bucket(&bucket)?;
        if delete.objects.is_empty() || delete.objects.len() > MAX_DELETED {
            return Err(s3_error!(MalformedXML, "Between one and {} objects can be deleted.", MAX_DELETED));
        }
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for object in delete.objects {
            if self.faults.is_undeletable(&object.key) {
                errors.push(Error {
                    code: Some("AccessDenied".to_owned()),
                    key: Some(object.key),
                    message: Some("Access Denied".to_owned()),
                    ..Default::default()
                });
                continue;
            }
            match self.objects.delete(bucket.clone(), object.key.clone()).await {
                Ok(()) => deleted.push(DeletedObject { key: Some(object.key), ..Default::default() }),
                Err(error) => errors.push(Error {
                    code: Some("InternalError".to_owned()),
                    key: Some(object.key),
                    message: Some(error.to_string()),
                    ..Default::default()
                }),
            }
        }
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (!delete.quiet.unwrap_or(false)).then_some(deleted),
            errors: Some(errors),
            ..Default::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let limit = match input.max_keys {
            None => MAX_KEYS,
            Some(keys) => usize::try_from(keys).map_err(|_| s3_error!(InvalidArgument))?.min(MAX_KEYS),
        };
        let page = self.objects.list(
            &input.bucket,
            input.prefix.as_deref().unwrap_or_default(),
            input.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty()),
            // The token is the key that the page before ended with.
            input.continuation_token.as_deref().or(input.start_after.as_deref()),
            limit,
        )?;
        let count = page.objects.len() + page.prefixes.len();
        let contents = page.objects.into_iter().map(|(key, meta)| Object {
            key: Some(key),
            size: length(meta.size),
            last_modified: Some(Timestamp::from(meta.modified)),
            e_tag: Some(ETag::Strong(meta.etag)),
            ..Default::default()
        });
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            start_after: input.start_after,
            continuation_token: input.continuation_token,
            max_keys: i32::try_from(limit).ok(),
            key_count: i32::try_from(count).ok(),
            is_truncated: Some(page.next_after.is_some()),
            next_continuation_token: page.next_after,
            contents: Some(contents.collect()),
            common_prefixes: Some(
                page.prefixes.into_iter().map(|prefix| CommonPrefix { prefix: Some(prefix) }).collect(),
            ),
            ..Default::default()
        }))
    }

    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let location = Some(format!("/{}", req.input.bucket));
        self.objects.make_bucket(req.input.bucket).await?;
        Ok(S3Response::new(CreateBucketOutput { location }))
    }

    async fn delete_bucket(
        &self,
        req: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        self.objects.remove_bucket(req.input.bucket).await?;
        Ok(S3Response::new(DeleteBucketOutput {}))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.check_bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.check_bucket(&req.input.bucket)?;
        // No constraint is how S3 says us-east-1.
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let buckets = self.objects.buckets().into_iter();
        let buckets = buckets.map(|name| Bucket { name: Some(name), ..Default::default() }).collect();
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(buckets), ..Default::default() }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let CreateMultipartUploadInput { bucket, key, .. } = req.input;
        self.check_bucket(&bucket)?;
        let upload_id = self.uploads.create(bucket.clone(), key.clone());
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            upload_id: Some(upload_id),
            ..Default::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let S3Request { input, headers, trailing_headers, .. } = req;
        let part = body::read(input.body, input.content_length, &headers, trailing_headers.as_ref()).await?;
        let etag = part_etag(&part);
        self.uploads.add(&input.upload_id, &input.bucket, &input.key, input.part_number, part)?;
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(ETag::Strong(etag)), ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let CompleteMultipartUploadInput { bucket, key, upload_id, multipart_upload, .. } = req.input;
        let parts = multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let parts: Vec<_> = parts
            .into_iter()
            .map(|part| (part.part_number.unwrap_or_default(), part.e_tag.map(ETag::into_value)))
            .collect();
        let content = self.uploads.complete(&upload_id, &bucket, &key, &parts)?;
        let meta = self.objects.put(bucket.clone(), key.clone(), content, false).await?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            e_tag: Some(ETag::Strong(meta.etag)),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = req.input;
        self.uploads.abort(&input.upload_id, &input.bucket, &input.key)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}

/// A range of an object as the body of an answer. What is in memory is sent from where it is.
fn blob(data: Data, range: Range<u64>) -> StreamingBlob {
    match data {
        Data::Memory(pieces) => {
            let mut slices = slice(&pieces, range);
            if slices.len() < 2 {
                return StreamingBlob::from(Body::from(slices.pop().unwrap_or_default()));
            }
            StreamingBlob::wrap(stream::iter(slices.into_iter().map(Ok::<_, io::Error>)))
        }
        Data::File(file) => StreamingBlob::wrap(stream::try_unfold(range, move |range| {
            let file = Arc::clone(&file);
            async move {
                if range.is_empty() {
                    return Ok(None);
                }
                let end = range.end.min(range.start + FILE_PIECE_BYTES);
                let piece = spawn_blocking(move || read_piece(&file, range.start..end)).await;
                let piece = piece.map_err(io::Error::other)??;
                Ok::<_, io::Error>(Some((piece, end..range.end)))
            }
        })),
    }
}

fn read_piece(file: &std::fs::File, range: Range<u64>) -> io::Result<Bytes> {
    let bytes = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut piece = BytesMut::zeroed(bytes);
    file.read_exact_at(&mut piece, range.start)?;
    Ok(piece.freeze())
}

fn slice(pieces: &[Bytes], range: Range<u64>) -> Vec<Bytes> {
    let mut slices = Vec::new();
    let mut start = 0;
    for piece in pieces {
        let end = start + piece.len() as u64;
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from < to
            && let (Ok(from), Ok(to)) = (usize::try_from(from - start), usize::try_from(to - start))
        {
            slices.push(piece.slice(from..to));
        }
        start = end;
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_the_range() {
        let pieces: Vec<Bytes> =
            ["abc", "d", "efgh"].map(|piece| Bytes::from_static(piece.as_bytes())).to_vec();
        let whole = pieces.concat();
        for from in 0..=8_u64 {
            for to in from..=8 {
                let found = slice(&pieces, from..to);
                let (start, end) = (usize::try_from(from).unwrap(), usize::try_from(to).unwrap());
                assert_eq!(found.concat(), whole[start..end], "{from}..{to}");
                assert!(found.iter().all(|piece| !piece.is_empty()));
            }
        }
    }
}
