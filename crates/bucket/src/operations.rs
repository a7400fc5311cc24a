//! The operations of [`Bucket`] on a store.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_format::keys::{BucketEntry, BucketKey, BucketPrefix};
use futures::TryStreamExt;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use super::local::LocalDirectory;
use super::reader::{ObjectReader, ReadStart};
use super::store::{CALL_TIMEOUT, CallInfo, MAX_SMALL_OBJECT_BYTES, ObjectStoreBucket, upload_timeout};
use super::{Bucket, BucketError, BucketOperation, Created, FileSummary, HeaderPatch};
use super::{range, transfer};

impl ObjectStoreBucket {
    async fn list_store(
        &self,
        prefix: &BucketPrefix,
        call: CallInfo<'_>,
    ) -> Result<Vec<BucketEntry>, BucketError> {
        let folder = prefix.as_str().trim_end_matches('/');
        let path = if folder.is_empty() {
            self.root.clone()
        } else {
            self.locate(CallInfo { name: folder, ..call })?
        };
        let mut listing = self.store.list(Some(&path));
        let mut entries = Vec::new();
        while let Some(object) = call.complete(listing.try_next()).await? {
            let location = object.location.as_ref();
            let key = if self.root.as_ref().is_empty() {
                Some(location)
            } else {
                location.strip_prefix(self.root.as_ref()).and_then(|rest| rest.strip_prefix('/'))
            };
            // Names that are not valid keys are not ours.
            if let Some(Ok(key)) = key.map(BucketKey::new) {
                entries.push(BucketEntry { key, size_bytes: object.size });
            }
        }
        Ok(entries)
    }
}

#[async_trait]
impl Bucket for ObjectStoreBucket {
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        let call = CallInfo { operation: BucketOperation::Create, name: key.as_str() };
        if let Some(directory) = &self.directory {
            let (key, number) = (key.clone(), self.env.random_u64());
            let create = move |directory: &LocalDirectory| directory.create(&key, &bytes, number);
            return self.on_directory(directory, call, create).await;
        }
        let path = self.locate(call)?;
        let timeout = upload_timeout(bytes.len());
        let put = self.creating.put_opts(&path, PutPayload::from_bytes(bytes), PutMode::Create.into());
        match call.within(timeout, put).await? {
            Ok(_) => Ok(Created::New),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(Created::Exists),
            Err(error) => Err(call.failed(error)),
        }
    }

    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        let call = CallInfo { operation: BucketOperation::Get, name: key.as_str() };
        let too_large = |size_bytes: u64| {
            let what = format!("{size_bytes} bytes, but at most {MAX_SMALL_OBJECT_BYTES} are expected");
            BucketError::Corrupt { object: key.to_string(), what }
        };
        if let Some(directory) = &self.directory {
            let name = key.to_string();
            let read =
                move |directory: &LocalDirectory| Ok(directory.read_object(&name, MAX_SMALL_OBJECT_BYTES));
            let found =
                self.on_directory(directory, call, read).await?.map_err(|error| call.unread(error))?;
            return found.transpose().map(|found| found.map(Bytes::from)).map_err(too_large);
        }
        match ObjectReader::begin(self, call, None).await? {
            ReadStart::Reader(reader) if reader.size_bytes() > MAX_SMALL_OBJECT_BYTES => {
                Err(too_large(reader.size_bytes()))
            }
            ReadStart::Reader(reader) => reader.collect().await.map(Some),
            ReadStart::Absent => Ok(None),
            ReadStart::Refused(error) => Err(call.failed(error)),
        }
    }

    async fn get_range(&self, key: &BucketKey, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        range::read(self, key, range).await
    }

    async fn get_tail(&self, key: &BucketKey, count: u64) -> Result<Option<Bytes>, BucketError> {
        range::read_tail(self, key, count).await
    }

    async fn put_file(
        &self,
        key: &BucketKey,
        path: &Path,
        patch: HeaderPatch,
    ) -> Result<FileSummary, BucketError> {
        let call = CallInfo { operation: BucketOperation::PutFile, name: key.as_str() };
        self.check_present(call).await?;
        transfer::upload(self, call, path, patch).await
    }

    async fn get_file(&self, key: &BucketKey, path: &Path) -> Result<Option<FileSummary>, BucketError> {
        let call = CallInfo { operation: BucketOperation::GetFile, name: key.as_str() };
        match &self.directory {
            Some(directory) => transfer::copy(self, directory, call, path).await,
            None => transfer::download(self, call, path).await,
        }
    }

    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        let call = CallInfo { operation: BucketOperation::List, name: prefix.as_str() };
        let mut entries = match &self.directory {
            None => self.list_store(prefix, call).await?,
            Some(directory) => {
                let (prefix, wall) = (prefix.clone(), Duration::from_micros(self.env.wall_micros()));
                self.on_locked_directory(directory, call, move |directory| directory.try_list(&prefix, wall))
                    .await?
            }
        };
        entries.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        Ok(entries)
    }

    async fn delete(&self, key: &BucketKey) -> Result<(), BucketError> {
        let call = CallInfo { operation: BucketOperation::Delete, name: key.as_str() };
        if let Some(directory) = &self.directory {
            let key = key.clone();
            return self
                .on_locked_directory(directory, call, move |directory| directory.try_delete(&key))
                .await;
        }
        let path = self.locate(call)?;
        match call.within(CALL_TIMEOUT, self.store.delete(&path)).await? {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(call.failed(error)),
        }
    }
}
