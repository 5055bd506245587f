//! The conformance suite against an S3 server that runs already: MinIO, Ceph, moto, Amazon's own.
//!
//! ```text
//! STRANDLINE_TEST_S3_ENDPOINT=http://127.0.0.1:9000 STRANDLINE_TEST_S3_BUCKET=some-bucket \
//! STRANDLINE_TEST_S3_ACCESS_KEY=… STRANDLINE_TEST_S3_SECRET_KEY=… [STRANDLINE_TEST_S3_CHECKSUM=sha256] \
//!   cargo test -p strandline-storage --features testing --test other_server -- --ignored
//! ```

use strandline_storage::store::{Secret, StoreUrl, conformance, open_backend};
use strandline_storage::{Clock, StoreConfig, SystemClock};

#[expect(clippy::disallowed_methods, reason = "the configuration of a test that is run by hand")]
fn setting(name: &str) -> Option<String> {
    std::env::var(format!("STRANDLINE_TEST_S3_{name}")).ok()
}

#[tokio::test]
#[ignore = "needs an S3 server, named by the environment"]
async fn another_s3_server_conforms() {
    let bucket = setting("BUCKET").expect("STRANDLINE_TEST_S3_BUCKET names a bucket");
    // A prefix of its own, since the suite wants an empty store.
    let prefix = format!("strandline-conformance/{}", SystemClock.now_ms());
    let config = StoreConfig {
        endpoint: Some(setting("ENDPOINT").expect("STRANDLINE_TEST_S3_ENDPOINT is a URL")),
        region: setting("REGION"),
        access_key_id: setting("ACCESS_KEY"),
        secret_access_key: setting("SECRET_KEY").map(Secret::new),
        checksum: setting("CHECKSUM").map(|name| name.parse().expect("a checksum")).unwrap_or_default(),
        allow_http: true,
        ..StoreConfig::new(StoreUrl::S3 { bucket, prefix })
    };
    conformance::run(&*open_backend(&config).expect("a configuration that works")).await;
}
