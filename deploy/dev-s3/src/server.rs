//! Ports and connections.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::admin;
use crate::api::Api;
use crate::config::{Config, Tls};
use crate::error::StartError;
use crate::faults::{FaultPlan, Faults, Operation};
use crate::objects::Objects;
use crate::service::Service;

/// How long to pause when no more connections can be accepted, as when there are no file
/// descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A client must have sent its request's head within this time.
const HEADER_TIMEOUT: Duration = Duration::from_mins(1);

/// A server whose ports are bound. It serves while [`run`](Self::run) is polled.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    admin: Option<(TcpListener, SocketAddr)>,
    tls: Option<TlsAcceptor>,
    service: Service,
    place: String,
}

impl Server {
    /// Opens the place where objects are kept, makes the buckets and binds the ports.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let objects = Arc::new(Objects::open(&config.place)?);
        for bucket in &config.buckets {
            objects.make_bucket_at_start(bucket)?;
        }
        let tls = config.tls.as_ref().map(acceptor).transpose()?;
        let (listener, address) = bind(config.listen).await?;
        let admin = match config.admin {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let place = objects.to_string();
        let faults = Arc::new(Faults::new(config.seed));
        let mut builder = S3ServiceBuilder::new(Api::new(objects, Arc::clone(&faults)));
        builder.set_auth(SimpleAuth::from_single(config.access_key, config.secret_key));
        let service = Service { s3: builder.build(), faults };
        Ok(Self { listener, address, admin, tls, service, place })
    }

    /// Where S3 is served, as a URL.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Where faults are controlled, as a URL.
    pub fn admin_url(&self) -> Option<String> {
        self.admin.as_ref().map(|(_, address)| format!("http://{address}"))
    }

    /// A handle to set faults without the admin port, for tests in the same process.
    pub fn fault_setter(&self) -> impl Fn(FaultPlan) -> Result<(), String> + Send + Sync + 'static {
        let faults = Arc::clone(&self.service.faults);
        move |plan| faults.set(plan)
    }

    /// A handle that tells how many requests of an operation there were, for tests in the same
    /// process.
    pub fn request_counter(&self) -> impl Fn(Operation) -> u64 + Send + Sync + 'static {
        let faults = Arc::clone(&self.service.faults);
        move |operation| faults.stats().of(operation)
    }

    /// Serves until `shutdown` ends. Connections are then closed where they stand.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let mut admin = JoinSet::new();
        if let Some((listener, _)) = self.admin {
            let router = admin::router(Arc::clone(&self.service.faults));
            admin.spawn(async move {
                if let Err(error) = axum::serve(listener, router).await {
                    tracing::error!(%error, "the admin port is closed");
                }
            });
        }
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                // Reaps what has ended, so that the set does not grow.
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, self.tls.clone(), self.service.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "serving S3 at {} from {}", self.url(), self.place)?;
        match self.admin_url() {
            Some(url) => write!(f, ", faults at {url}/faults"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({self})")
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let fail = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    Ok((listener, bound))
}

fn acceptor(tls: &Tls) -> Result<TlsAcceptor, StartError> {
    let certificate_fails =
        |what: &dyn fmt::Display| StartError::Tls { path: tls.certificate.clone(), what: what.to_string() };
    let key_fails =
        |what: &dyn fmt::Display| StartError::Tls { path: tls.key.clone(), what: what.to_string() };
    let chain: Vec<_> = CertificateDer::pem_file_iter(&tls.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| certificate_fails(&error))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| key_fails(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| certificate_fails(&error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, service: Service) {
    // Without it a small answer waits 40 ms for the client's acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was closed before it began");
        return;
    }
    match tls {
        None => serve_requests(stream, service).await,
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => serve_requests(stream, service).await,
            Err(error) => tracing::debug!(%error, "a TLS handshake failed"),
        },
    }
}

async fn serve_requests(stream: impl AsyncRead + AsyncWrite + Unpin, service: Service) {
    let service = &service;
    let handler = service_fn(|request| async move { service.call(request).await.map_err(as_io) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), handler);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended");
    }
}

/// hyper wants an error type that is one; the one that closes a connection is not.
fn as_io(error: s3s::HttpError) -> io::Error {
    io::Error::other(s3s::StdError::from(error))
}
