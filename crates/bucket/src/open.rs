//! Opens a bucket from its URL.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dormouse_runtime::Env;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path as ObjectPath;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::local::LocalDirectory;
use super::store::ObjectStoreBucket;

/// How long object_store itself retries a request. Short, because [`create_once`](super::create_once) repeats calls
/// that need a definite answer, and knows when to stop. object_store never retries creates.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_RETRIES: usize = 3;

/// Why a bucket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenBucketError {
    /// The text is not the URL of a bucket.
    #[error(
        "not the URL of a bucket: {why}. It is one of file:///DIRECTORY, s3://BUCKET[/PATH], gs://BUCKET[/PATH], az://CONTAINER[/PATH], memory:///"
    )]
    InvalidUrl {
        /// What is wrong with it. Never contains the URL itself, which could contain a password.
        why: String,
    },
    /// The directory does not exist. It is never created, because a missing mount must not look like an empty bucket.
    #[error("the bucket's directory {} cannot be opened: it must exist (an unmounted disk looks like this) and be writable", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The settings in the environment do not make a working client.
    #[error("the bucket's settings in the environment ({variables}…) are not complete or not valid")]
    Settings {
        /// Prefix of the variables' names.
        variables: &'static str,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Opens the bucket that `url` names. Nothing is read or written, except that a local directory gets its lock files;
/// [`probe`](super::probe) checks whether the store is reachable and keeps its contract.
///
/// | URL | store | settings from the environment |
/// |---|---|---|
/// | `file:///DIRECTORY` | an existing directory, also a mount | none |
/// | `s3://BUCKET[/PATH]` | S3 and compatible stores | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`, … |
/// | `gs://BUCKET[/PATH]` | Google Cloud Storage | `GOOGLE_SERVICE_ACCOUNT`, … |
/// | `az://CONTAINER[/PATH]` | Azure Blob Storage | `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY`, … |
/// | `memory:///` | the memory of this process, fresh for each call | none |
///
/// `variables` are the environment variables. Cancelling the call has no effect.
///
/// # Errors
/// [`OpenBucketError`].
pub async fn open_bucket(
    url: &str,
    variables: impl IntoIterator<Item = (String, String)>,
    env: Env,
) -> Result<ObjectStoreBucket, OpenBucketError> {
    let invalid = |why: &str| OpenBucketError::InvalidUrl { why: why.to_owned() };
    let url = Url::parse(url).map_err(|error| invalid(&error.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("credentials belong into the environment, not into the URL"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("it has a query or a fragment"));
    }
    if url.port().is_some() {
        return Err(invalid(
            "it has a port: the address of a store belongs into the environment (AWS_ENDPOINT_URL, …)",
        ));
    }
    match url.scheme() {
        "file" => return open_directory(&url, env).await,
        "memory" => return Ok(ObjectStoreBucket::in_memory(env)),
        _ => {}
    }
    let variables: BTreeMap<String, String> = variables.into_iter().collect();
    let bucket = url.host_str().ok_or_else(|| invalid("it names no bucket"))?;
    let bucket_url = format!("{}://{bucket}", url.scheme());
    let root = ObjectPath::from_url_path(url.path()).map_err(|error| invalid(&error.to_string()))?;
    let (store, parts) = open_remote(url.scheme(), &bucket_url, &variables, MAX_RETRIES)?;
    let (creating, _) = open_remote(url.scheme(), &bucket_url, &variables, 0)?;
    Ok(ObjectStoreBucket::new(store, root, url.to_string(), env).with_creating(creating).with_parts(parts))
}

async fn open_directory(url: &Url, env: Env) -> Result<ObjectStoreBucket, OpenBucketError> {
    let path = url
        .to_file_path()
        .map_err(|()| OpenBucketError::InvalidUrl { why: "file:// names no absolute path".to_owned() })?;
    if path.parent().is_none() {
        let why = "it names the root directory, which is no bucket".to_owned();
        return Err(OpenBucketError::InvalidUrl { why });
    }
    let opening = path.clone();
    let opened = env
        .blocking(move || {
            let directory = LocalDirectory::open(opening)?;
            let store = LocalFileSystem::new_with_prefix(directory.root())?.with_fsync(true);
            Ok((directory, store))
        })
        .await;
    match opened {
        Ok((directory, store)) => {
            Ok(ObjectStoreBucket::local(Arc::new(store), directory, url.to_string(), env))
        }
        Err(source) => Err(OpenBucketError::Directory { path, source }),
    }
}

/// One store, with its interfaces for whole objects and for multipart uploads.
type Remote = (Arc<dyn ObjectStore>, Arc<dyn MultipartStore>);

/// Like `from_env` of each builder, but from the given variables.
fn open_remote(
    scheme: &str,
    bucket_url: &str,
    variables: &BTreeMap<String, String>,
    max_retries: usize,
) -> Result<Remote, OpenBucketError> {
    let retry = RetryConfig { max_retries, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    macro_rules! build {
        ($builder:ty, $prefix:literal) => {{
            // A limit on a whole request would limit the size of an object. `CallInfo` limits the time without progress.
            let options = ClientOptions::new().with_timeout_disabled();
            let mut builder =
                <$builder>::new().with_url(bucket_url).with_client_options(options).with_retry(retry);
            let limits = [concat!($prefix, "TIMEOUT"), concat!($prefix, "READ_TIMEOUT")];
            let is_setting = |name: &str| {
                name.starts_with($prefix) && !limits.iter().any(|limit| name.eq_ignore_ascii_case(limit))
            };
            for (name, value) in variables.iter().filter(|(name, _)| is_setting(name)) {
                // Names that are no settings of the builder (AWS_PROFILE, …) are ignored.
                if let Ok(key) = name.to_ascii_lowercase().parse() {
                    builder = builder.with_config(key, value);
                }
            }
            match builder.build() {
                Ok(store) => {
                    let store = Arc::new(store);
                    Ok((Arc::clone(&store) as Arc<dyn ObjectStore>, store as Arc<dyn MultipartStore>))
                }
                Err(error) => Err(OpenBucketError::Settings { variables: $prefix, source: error.into() }),
            }
        }};
    }
    match scheme {
        "s3" => build!(AmazonS3Builder, "AWS_"),
        "gs" => build!(GoogleCloudStorageBuilder, "GOOGLE_"),
        "az" => build!(MicrosoftAzureBuilder, "AZURE_"),
        other => Err(OpenBucketError::InvalidUrl { why: format!("{other}:// is not known") }),
    }
}

impl ObjectStoreBucket {
    /// An empty bucket in the memory of this process. It ends with its last handle.
    #[must_use]
    pub fn in_memory(env: Env) -> Self {
        let store = Arc::new(InMemory::new());
        let parts = Arc::clone(&store) as Arc<dyn MultipartStore>;
        Self::new(store, ObjectPath::ROOT, "memory:///".to_owned(), env).with_parts(parts)
    }
}
