//! One client's way to etcd: logs in, sends a call once, waits for it so long, and says what came
//! of it.

use std::future::Future;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, KvClient, WatchClient};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tower::util::BoxCloneSyncService;
use tracing::{debug, warn};

use super::config::{EtcdConfig, EtcdConfigError, Password};
use super::failure::Failure;
use super::lanes::{Choice, Lanes, Purpose};

use crate::limits::BACKEND_ANSWER_BYTES;

/// What all calls of one client share.
pub(super) struct Session {
    client: Client,
    lanes: Lanes,
    credentials: Option<(String, Password)>,
    /// Counts how often this client has logged in. Held while it does, so that many calls log in
    /// once.
    logins: Mutex<u64>,
    pub(super) request_timeout: Duration,
}

impl Session {
    /// Connects and logs in when the first call is made, not before.
    pub(super) async fn new(config: &EtcdConfig) -> Result<Self, EtcdConfigError> {
        let credentials = config.credentials()?;
        let lanes = Lanes::new(&config.transport()?);
        let channel = etcd_client::Channel::Custom(BoxCloneSyncService::new(lanes.clone()));
        // No user here: this client logs in itself. Then etcd-client, too, sends every request
        // exactly once; with its own token refresh it would send some twice.
        let options = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(false);
        let client = Client::from_channel(channel, Some(options))
            .await
            .map_err(|error| EtcdConfigError::Client(error.to_string()))?;
        Ok(Self {
            client,
            lanes,
            credentials,
            logins: Mutex::new(0),
            request_timeout: config.request_timeout,
        })
    }

    pub(super) fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(BACKEND_ANSWER_BYTES)
    }

    pub(super) fn watches(&self) -> WatchClient {
        self.client.watch_client().max_decoding_message_size(BACKEND_ANSWER_BYTES)
    }

    #[cfg(feature = "log")]
    pub(super) fn leases(&self) -> etcd_client::LeaseClient {
        self.client.lease_client()
    }

    #[cfg(feature = "log")]
    pub(super) fn maintenance(&self) -> etcd_client::MaintenanceClient {
        self.client.maintenance_client()
    }

    /// The endpoint that a stream which is opened now would use.
    pub(super) fn choice(&self, purpose: Purpose) -> Choice {
        self.lanes.choice(purpose)
    }

    /// Something is wrong with a stream to this endpoint.
    pub(super) fn doubt(&self, purpose: Purpose, choice: Choice) {
        self.lanes.doubt(purpose, choice);
    }

    /// Makes a call. It is sent once; a second time only if etcd turned it away for its token,
    /// before it looked at what it was asked.
    pub(super) async fn call<T, F>(&self, purpose: Purpose, send: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let login = self.log_in(0).await?;
        match self.send_once(purpose, send()).await {
            Err(Failure::Token(why)) if self.credentials.is_some() => {
                debug!(why, "log in to etcd again");
                self.log_in(login).await?;
                self.send_once(purpose, send()).await
            }
            result => result,
        }
    }

    async fn send_once<T>(
        &self,
        purpose: Purpose,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let choice = self.lanes.choice(purpose);
        let result = timeout(self.request_timeout, call).await;
        let result = result.unwrap_or_else(|_| Err(Failure::Lost(self.no_answer())));
        if result.as_ref().is_err_and(Failure::is_doubt) {
            self.lanes.doubt(purpose, choice);
        }
        result
    }

    /// Logs in unless that was done more than `stale` times. Whatever goes wrong here, the call
    /// that needs the token was not sent.
    async fn log_in(&self, stale: u64) -> Result<u64, Failure> {
        let Some((user, password)) = &self.credentials else { return Ok(0) };
        let choice = self.lanes.choice(Purpose::Kv);
        let attempt = async {
            let mut logins = self.logins.lock().await;
            if *logins > stale {
                return Ok(*logins);
            }
            let login = Some((user.clone(), password.reveal().to_owned()));
            match self.client.clone().update_user(login).await {
                Ok(()) => {}
                Err(etcd_client::Error::GRpcStatus(status)) if status.message().contains("not enabled") => {
                    warn!(user, "etcd's authentication is off, so the configured user means nothing");
                }
                Err(error) => return Err(Failure::from(error)),
            }
            *logins += 1;
            Ok(*logins)
        };
        let result = timeout(self.request_timeout, attempt).await;
        match result.unwrap_or_else(|_| Err(Failure::Lost(self.no_answer()))) {
            Err(failure) if failure.is_doubt() => {
                self.lanes.doubt(Purpose::Kv, choice);
                Err(Failure::NotExecuted(format!("cannot log in: {}", failure.of_read())))
            }
            result => result,
        }
    }

    fn no_answer(&self) -> String {
        format!("no answer within {} ms", self.request_timeout.as_millis())
    }
}
