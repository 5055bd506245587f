//! Answering: an answer may have to wait for the store, and none can be forgotten.

use tokio::sync::oneshot;

use super::error::{CoordinatorError, GroupError};

/// Where the answer to one request goes. Dropped without one, it says that this broker does not
/// coordinate the group: the client asks who does, and tries again.
#[derive(Debug)]
#[must_use]
pub(crate) struct Reply<T>(Option<oneshot::Sender<Result<T, GroupError>>>);

impl<T> Reply<T> {
    /// A reply, and where it is waited for.
    pub(super) fn channel() -> (Self, oneshot::Receiver<Result<T, GroupError>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Some(sender)), receiver)
    }

    fn send(&mut self, answer: Result<T, GroupError>) {
        if let Some(sender) = self.0.take() {
            // Whoever stopped waiting does not need the answer.
            let _ = sender.send(answer);
        }
    }

    /// Answers with an error.
    pub(super) fn refuse(mut self, error: CoordinatorError) {
        self.send(Err(error.into()));
    }
}

impl<T: Send + 'static> Reply<T> {
    /// An answer that tells what the group is.
    pub(super) fn with(self, answer: Result<T, impl Into<GroupError>>) -> Response {
        self.about(Subject::Group, answer.map_err(Into::into))
    }

    /// An answer that tells what is committed, or what is not.
    pub(super) fn with_offsets(self, answer: Result<T, impl Into<GroupError>>) -> Response {
        self.about(Subject::Offsets, answer.map_err(Into::into))
    }

    fn about(mut self, subject: Subject, answer: Result<T, GroupError>) -> Response {
        let deliver = move |stored: Result<(), CoordinatorError>| match stored {
            Ok(()) => self.send(answer),
            Err(error) => self.refuse(error),
        };
        Response { subject, deliver: Box::new(deliver) }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.send(Err(CoordinatorError::Unanswered.into()));
        }
    }
}

/// What an answer is about, and so what must be stored before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// The group itself.
    Group,
    /// The group and its committed offsets.
    Offsets,
}

/// An answer on its way: the store decides when it is delivered.
#[must_use]
pub(super) struct Response {
    pub(super) subject: Subject,
    deliver: Box<dyn FnOnce(Result<(), CoordinatorError>) + Send>,
}

impl Response {
    /// Sends the answer, or says why what it tells is not stored.
    pub(super) fn deliver(self, stored: Result<(), CoordinatorError>) {
        (self.deliver)(stored);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reply_that_is_dropped_is_an_answer() {
        let (reply, answer) = Reply::<()>::channel();
        drop(reply);
        assert_eq!(answer.await, Ok(Err(CoordinatorError::Unanswered.into())));
        let (reply, answer) = Reply::<()>::channel();
        drop(reply.with(Ok::<(), GroupError>(())));
        assert_eq!(answer.await, Ok(Err(CoordinatorError::Unanswered.into())));
    }
}
