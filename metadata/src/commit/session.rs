//! The registration under which a broker commits.

use std::sync::Arc;

use tokio::sync::watch;

/// A registration under which a broker may commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The broker.
    pub node_id: i32,
    /// Create revision of its registration.
    pub incarnation: i64,
}

/// The current session of this broker, if it has one. Whoever finds out that it is over ends it.
#[derive(Clone, Debug)]
pub struct SessionCell {
    current: Arc<watch::Sender<Option<Session>>>,
}

impl Default for SessionCell {
    fn default() -> Self {
        Self { current: Arc::new(watch::Sender::new(None)) }
    }
}

impl SessionCell {
    /// A session begins.
    pub fn begin(&self, session: Session) {
        self.current.send_replace(Some(session));
    }

    /// The session of `incarnation` is over. Does nothing if another one has begun since.
    pub fn end(&self, incarnation: i64) {
        self.current.send_if_modified(|current| {
            let matches = current.is_some_and(|s| s.incarnation == incarnation);
            if matches {
                *current = None;
            }
            matches
        });
    }

    /// The current session.
    pub fn current(&self) -> Option<Session> {
        *self.current.borrow()
    }

    /// Waits until the session of `incarnation` is over.
    pub async fn ended(&self, incarnation: i64) {
        let mut receiver = self.current.subscribe();
        // The sender lives in `self`.
        let _ = receiver.wait_for(|s| s.is_none_or(|s| s.incarnation != incarnation)).await;
    }

    /// Waits until there is a session.
    pub async fn begun(&self) -> Session {
        let mut receiver = self.current.subscribe();
        loop {
            if let Some(session) = *receiver.borrow_and_update() {
                return session;
            }
            // The sender lives in `self`.
            let _ = receiver.changed().await;
        }
    }
}
