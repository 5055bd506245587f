//! TLS with a private authority, and client certificates.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use strandline_metadata::backend::etcd::{Etcd, EtcdConfig};
use tempfile::TempDir;

use super::server::{Options, Server, available, write};
use super::*;

/// A certificate authority in files, and what it signed for etcd and for a client.
struct Pki {
    directory: TempDir,
    ca: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let ca = write(&directory, "ca.pem", &certificate.pem());
        Self { directory, ca, issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let cert = write(&self.directory, &format!("{name}.pem"), &certificate.pem());
        let key = write(&self.directory, &format!("{name}.key"), &key.serialize_pem());
        (cert, key)
    }

    async fn etcd(&self, ask_for_client_certificates: bool) -> Server {
        let (cert, key) = self.sign("etcd");
        let path = |path: &PathBuf| path.display().to_string();
        let mut arguments = vec!["--cert-file".to_owned(), path(&cert), "--key-file".to_owned(), path(&key)];
        if ask_for_client_certificates {
            arguments.push("--client-cert-auth".to_owned());
            arguments.extend(["--trusted-ca-file".to_owned(), path(&self.ca)]);
        }
        Server::start_with(Options { arguments, tls: true }).await
    }
}

fn trusting(server: &Server, ca: &Pki) -> EtcdConfig {
    EtcdConfig {
        ca_file: Some(ca.ca.clone()),
        request_timeout: Duration::from_secs(2),
        ..EtcdConfig::new([server.url()])
    }
}

async fn unavailable(config: &EtcdConfig) {
    let store = Etcd::new(config).await.unwrap();
    let error = store.txn(put("a", "1")).await.unwrap_err();
    assert!(
        matches!(error, BackendError::Unavailable(_)),
        "a connection that never was sends nothing: {error:?}"
    );
}

#[tokio::test]
async fn connections_are_encrypted_and_etcd_is_verified() {
    if !available("connections_are_encrypted_and_etcd_is_verified") {
        return;
    }
    let pki = Pki::new();
    let server = pki.etcd(false).await;
    let store = Etcd::new(&trusting(&server, &pki)).await.unwrap();
    eventually("etcd answers over TLS", async || get(&store, "a").await).await;
    store.txn(put("a", "1")).await.unwrap();
    let mut watch = store.watch(KeyRange::key("a"), 1).await.unwrap();
    next_events(&mut *watch).await.unwrap();

    unavailable(&trusting(&server, &Pki::new())).await;
}

#[tokio::test]
async fn etcd_verifies_the_client() {
    if !available("etcd_verifies_the_client") {
        return;
    }
    let pki = Pki::new();
    let server = pki.etcd(true).await;
    let (cert, key) = pki.sign("client");
    let known = EtcdConfig { cert_file: Some(cert), key_file: Some(key), ..trusting(&server, &pki) };
    let store = Etcd::new(&known).await.unwrap();
    eventually("etcd answers over TLS", async || get(&store, "a").await).await;
    store.txn(put("a", "1")).await.unwrap();

    let unknown = Etcd::new(&trusting(&server, &pki)).await.unwrap();
    let error = get(&unknown, "a").await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
}
