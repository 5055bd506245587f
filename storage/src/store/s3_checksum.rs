//! Sends the CRC-32C of an object along with its PUT.
//!
//! The S3 client can compute a checksum of what it sends, which takes another pass over the bytes,
//! but not be told one. So the header is added below it, to a request that is ready to be sent. S3
//! takes no `x-amz-` header that is not signed, so the request is then signed once more.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use object_store::ClientOptions;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

use crate::format::checksum::Crc32c;

/// S3's header for it.
const CHECKSUM_HEADER: &str = "x-amz-checksum-crc32c";
/// The service that requests are signed for.
const SERVICE: &str = "s3";

/// Makes clients that send along the checksum that a request's extensions hold.
#[derive(Clone, Debug)]
pub(super) struct ChecksumConnector {
    region: Arc<str>,
    credentials: Arc<OnceLock<AwsCredentialProvider>>,
}

impl ChecksumConnector {
    /// Signs for this region.
    pub(super) fn new(region: String) -> Self {
        Self { region: region.into(), credentials: Arc::default() }
    }

    /// Says whose signature it is, which is known only when the S3 client is made.
    pub(super) fn sign_with(&self, credentials: AwsCredentialProvider) {
        // Once for each connector.
        let _ = self.credentials.set(credentials);
    }
}

impl HttpConnector for ChecksumConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(ChecksumService { client, connector: self.clone() }))
    }
}

#[derive(Debug)]
struct ChecksumService {
    client: HttpClient,
    connector: ChecksumConnector,
}

#[async_trait]
impl HttpService for ChecksumService {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if let Some(checksum) = request.extensions().get::<Crc32c>().copied() {
            let unsigned = |error: object_store::Error| HttpError::new(HttpErrorKind::Unknown, error);
            let text = STANDARD.encode(checksum.value().to_be_bytes());
            if let (Ok(value), Some(credentials)) =
                (HeaderValue::try_from(text), self.connector.credentials.get())
            {
                let credential = credentials.get_credential().await.map_err(unsigned)?;
                request.headers_mut().remove(AUTHORIZATION);
                request.headers_mut().insert(CHECKSUM_HEADER, value);
                AwsAuthorizer::new(&credential, SERVICE, &self.connector.region)
                    .with_sign_payload(false)
                    .try_authorize(&mut request, None)
                    .map_err(unsigned)?;
            }
        }
        self.client.execute(request).await
    }
}
