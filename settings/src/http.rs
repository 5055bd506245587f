//! An HTTP server that strangers cannot occupy.
//!
//! ```text
//!   accept ─▶ a place (evicts who only waits) ─▶ head ≤ 75 s ─▶ body ≤ 30 s ─▶ routes ─▶ response, read within 30 s
//! ```
//!
//! Connections are bounded. Where there is no place, one gives way that has had no request for a
//! second, of the address that has most of them: so whoever opens connections and says nothing, or
//! says it byte by byte, pushes out itself and not the health checks. If there is none, whoever
//! comes waits.

mod body;
mod places;
mod stream;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;
use tracing::debug;

use self::body::{RequestBody, ResponseBody};
use self::places::{Place, Places};
use self::stream::PatientStream;
use crate::limits::{HTTP_ACCEPT_PAUSE, HTTP_BODY_TIME, HTTP_FINISH_TIME, HTTP_HEAD_TIME, HTTP_PLACE_PAUSE};

/// Serves `routes` with at most so many connections at a time until `stop` is done; then what is
/// under way is finished. Routes find the other end's address as [`ConnectInfo`] of a
/// [`SocketAddr`].
pub async fn serve_http(
    listener: TcpListener,
    routes: Router,
    connections: usize,
    stop: impl Future<Output = ()>,
) {
    let places = Arc::new(Places::new(connections));
    let mut stop = pin!(stop);
    let (stopping, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let place = tokio::select! {
                    biased;
                    () = &mut stop => break,
                    place = free_place(&places, canonical(peer.ip())) => place,
                };
                // An answer is one write; without this it may wait for an acknowledgement.
                let _ = stream.set_nodelay(true);
                let number = place.number();
                let serving = serve_connection(stream, peer, routes.clone(), place, stopped.clone());
                places.started(number, tasks.spawn(serving));
            }
            Err(error) => {
                debug!(%error, "an HTTP connection could not be accepted");
                sleep(HTTP_ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    let finished = async { while tasks.join_next().await.is_some() {} };
    if timeout(HTTP_FINISH_TIME, finished).await.is_err() {
        debug!("HTTP requests are ended that take too long");
    }
}

/// Waits until there is a place.
async fn free_place(places: &Arc<Places>, address: IpAddr) -> Place {
    loop {
        if let Some(place) = Places::take(places, address) {
            return place;
        }
        sleep(HTTP_PLACE_PAUSE).await;
    }
}

/// The address as one of IPv4 where it is one, however the socket shows it.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    routes: Router,
    place: Place,
    mut stopped: watch::Receiver<bool>,
) {
    let place = Arc::new(place);
    let service = service_fn(|request: Request<Incoming>| {
        let (routes, request_place) = (routes.clone(), Place::busy(&place));
        async move {
            let mut request = request.map(|body| Body::new(RequestBody::new(body, HTTP_BODY_TIME)));
            request.extensions_mut().insert(ConnectInfo(peer));
            let response: Response<Body> = match routes.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            Ok::<_, io::Error>(response.map(|body| ResponseBody::new(body, request_place)))
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HTTP_HEAD_TIME)
            .serve_connection(TokioIo::new(PatientStream::new(stream)), service)
    );
    // The sender's end means the same as its word.
    let stop = async move { drop(stopped.wait_for(|stopped| *stopped).await) };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "an HTTP connection ended");
    }
}

#[cfg(test)]
mod tests;
