//! The public calls that streams and key-value stores have in common.

/// The calls that streams and key-value stores have in common.
macro_rules! common_calls {
    ($name:ident) => {
        impl $name {
            /// The subject.
            #[must_use]
            pub const fn subject(&self) -> &Subject {
                &self.handle.subject
            }

            /// The same handle with another deadline for each call, all attempts and pauses included.
            #[must_use]
            pub const fn with_deadline(mut self, deadline: Duration) -> Self {
                self.handle.deadline = deadline;
                self
            }

            /// The same handle with at least this durability level for each change; a stronger level of the
            /// subject stays. A server that does not support the level rejects the change with `unsupported`.
            #[must_use]
            pub const fn with_level(mut self, level: Level) -> Self {
                self.handle.level = Some(level);
                self
            }

            /// The subject's properties without its messages: position, number and size of its messages,
            /// configuration, level, server.
            ///
            /// Cancelling the call has no side effects.
            ///
            /// # Errors
            /// The errors of every call.
            pub async fn info(&self) -> Result<InfoReply, Error> {
                self.handle.info().await
            }

            /// Replaces the whole configuration; a field that is absent in `config` gets its default. Returns
            /// the position after the change.
            ///
            /// If the call is cancelled, the configuration is either the old one or the new one.
            ///
            /// # Errors
            /// [`Error::Service`] with `bad_request` for a limit of 0, and with `too_large` for too much
            /// metadata; [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the
            /// errors of every call.
            pub async fn configure(&self, config: SubjectConfig) -> Result<Position, Error> {
                self.handle.configure(config).await
            }

            /// The changes after the position `after`, one page per call. With the position of the first page
            /// of a full read (see [`Pages::position`](crate::Pages::position)), it returns the changes
            /// during and since that read: the result of the read and these changes together give the current
            /// state.
            ///
            /// Cancelling the call has no side effects.
            ///
            /// # Errors
            /// The errors of every call.
            pub async fn changes(&self, after: Position) -> Result<crate::Changes, Error> {
                self.handle.changes(after).await
            }

            /// Waits until all writes so far are in the bucket. Returns the position that is in the bucket.
            ///
            /// If the call is cancelled, the server continues; objects that it uploads stay in the bucket.
            ///
            /// # Errors
            /// The errors of every call.
            pub async fn flush(&self) -> Result<Position, Error> {
                self.handle.flush().await
            }

            /// Destroys the subject with all its messages. Returns its last position; if the subject is used
            /// again, its positions continue from there.
            ///
            /// It is executed once, however often it is sent. It waits until the earlier changes of this client to
            /// the subject have ended, and later ones wait for it. A concurrent change of another client that
            /// arrives after it may end in [`Error::Indeterminate`] without being executed.
            ///
            /// If the call is cancelled, the subject may or may not be destroyed.
            ///
            /// # Errors
            /// [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the errors of
            /// every call.
            pub async fn destroy(&self) -> Result<Position, Error> {
                self.handle.destroy().await
            }
        }
    };
}
pub(crate) use common_calls;
