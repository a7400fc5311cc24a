//! Values as JSON, with the feature `json`.
//!
//! ```no_run
//! # async fn example(kv: dormouse_client::Kv) -> Result<(), Box<dyn std::error::Error>> {
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Settings {
//!     colour: String,
//! }
//!
//! kv.put_json("settings", &Settings { colour: "green".into() })?.await?;
//! let settings: Option<Settings> = kv.get_json("settings").await?;
//! # Ok(())
//! # }
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{AckFuture, Entry, Error, Kv, Message, MessageId, Stream};

/// Why a value could not be read as JSON.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The call failed.
    #[error(transparent)]
    Call(#[from] Error),
    /// The value is not JSON, or not the expected JSON.
    #[error("value is not the expected JSON")]
    Json(#[from] serde_json::Error),
}

/// An item with a value.
pub trait JsonValue {
    /// Reads the value as JSON. The null value and an omitted value are read as `null`.
    ///
    /// # Errors
    /// If the value is not the JSON of a `T`.
    fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error>;
}

fn read<T: DeserializeOwned>(value: Option<&bytes::Bytes>) -> Result<T, serde_json::Error> {
    serde_json::from_slice(value.map_or(b"null", |value| value.as_ref()))
}

impl JsonValue for Message {
    fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        read(self.value.as_ref())
    }
}

impl JsonValue for Entry {
    fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        read(self.value.as_ref())
    }
}

impl Kv {
    /// Like [`put`](Self::put), with `value` as JSON.
    ///
    /// # Errors
    /// If `value` cannot be written as JSON; then nothing is sent.
    pub fn put_json(
        &self,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
    ) -> Result<AckFuture, serde_json::Error> {
        Ok(self.put(key, serde_json::to_vec(value)?))
    }

    /// Like [`create`](Self::create), with `value` as JSON.
    ///
    /// # Errors
    /// If `value` cannot be written as JSON; then nothing is sent.
    pub fn create_json(
        &self,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
    ) -> Result<AckFuture, serde_json::Error> {
        Ok(self.create(key, serde_json::to_vec(value)?))
    }

    /// Like [`update`](Self::update), with `value` as JSON.
    ///
    /// # Errors
    /// If `value` cannot be written as JSON; then nothing is sent.
    pub fn update_json(
        &self,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
        expected: MessageId,
    ) -> Result<AckFuture, serde_json::Error> {
        Ok(self.update(key, serde_json::to_vec(value)?, expected))
    }

    /// The value of `key`, read as JSON; `None` if the key does not exist. For its revision as well, see
    /// [`entry`](Self::entry) and [`JsonValue::json`].
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// [`JsonError::Json`] if the value is not the JSON of a `T`; [`JsonError::Call`] with the errors of
    /// every call.
    pub async fn get_json<T: DeserializeOwned>(
        &self,
        key: impl Into<String>,
    ) -> Result<Option<T>, JsonError> {
        match self.entry(key).await? {
            Some(entry) => Ok(Some(entry.json()?)),
            None => Ok(None),
        }
    }
}

impl Stream {
    /// Like [`publish`](Self::publish), with `value` as JSON.
    ///
    /// # Errors
    /// If `value` cannot be written as JSON; then nothing is sent.
    pub fn publish_json(&self, value: &(impl Serialize + ?Sized)) -> Result<AckFuture, serde_json::Error> {
        Ok(self.publish(serde_json::to_vec(value)?))
    }
}
