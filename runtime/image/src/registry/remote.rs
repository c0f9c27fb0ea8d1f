//! Fetching from endpoints in turn, with retries and verification.

use std::io;
use std::time::Duration;

use futures::StreamExt as _;
use oci_client::errors::DigestError as ClientDigestError;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use crate::digest::Digest;
use crate::error::PullErrorClass;
use crate::manifest::{ACCEPTED, Descriptor};
use crate::reference::ImageReference;
use crate::registry::endpoint::{Endpoint, EndpointFailures, FetchError, chain};

/// How often and how patiently a transient failure is tried again within one pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts at each endpoint, the first included.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles each time.
    pub first_pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            attempts: 4,
            first_pause: Duration::from_millis(250),
        }
    }
}

/// An image at the endpoints that may have it.
pub(crate) struct Remote {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) retry: RetryPolicy,
}

impl Remote {
    /// The manifest that a reference names, and its digest.
    pub(crate) async fn resolve(
        &self,
        reference: &ImageReference,
    ) -> Result<(Vec<u8>, Digest), EndpointFailures> {
        self.manifest(reference.digest(), reference.tag()).await
    }

    /// A manifest by its digest, or else by its tag.
    pub(crate) async fn manifest(
        &self,
        digest: Option<&Digest>,
        tag: Option<&str>,
    ) -> Result<(Vec<u8>, Digest), EndpointFailures> {
        let mut failures = Vec::new();
        for endpoint in &self.endpoints {
            let mut pause = self.retry.first_pause;
            let mut attempt = 1;
            loop {
                match fetch_manifest(endpoint, digest, tag).await {
                    Ok(found) => return Ok(found),
                    Err(e)
                        if e.class == PullErrorClass::Transient
                            && attempt < self.retry.attempts =>
                    {
                        tracing::debug!(endpoint = endpoint.label(), attempt, error = %e, "manifest fetch failed, trying again");
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                        attempt += 1;
                    }
                    Err(e)
                        if e.class == PullErrorClass::Unauthorized
                            && endpoint.next_credentials() => {}
                    Err(e) => {
                        failures.push((endpoint.label().to_owned(), e));
                        break;
                    }
                }
            }
        }
        Err(EndpointFailures(failures))
    }

    /// Writes a blob to `file` from its start; verified when this returns. `on_bytes` is told of progress.
    pub(crate) async fn blob(
        &self,
        descriptor: &Descriptor,
        file: &mut tokio::fs::File,
        on_bytes: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EndpointFailures> {
        let mut failures = Vec::new();
        for endpoint in &self.endpoints {
            let mut pause = self.retry.first_pause;
            let mut attempt = 1;
            loop {
                match fetch_blob(endpoint, descriptor, file, on_bytes).await {
                    Ok(()) => return Ok(()),
                    Err(e)
                        if e.class == PullErrorClass::Transient
                            && attempt < self.retry.attempts =>
                    {
                        tracing::debug!(endpoint = endpoint.label(), attempt, error = %e, "blob fetch failed, trying again");
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                        attempt += 1;
                    }
                    Err(e)
                        if e.class == PullErrorClass::Unauthorized
                            && endpoint.next_credentials() => {}
                    Err(e) => {
                        failures.push((endpoint.label().to_owned(), e));
                        break;
                    }
                }
            }
        }
        Err(EndpointFailures(failures))
    }
}

async fn fetch_manifest(
    endpoint: &Endpoint,
    digest: Option<&Digest>,
    tag: Option<&str>,
) -> Result<(Vec<u8>, Digest), FetchError> {
    let reference = match digest {
        Some(digest) => endpoint.by_digest(digest),
        None => endpoint.by_tag(tag.unwrap_or("latest")),
    };
    let (client, auth) = endpoint.session()?;
    let (body, _) = match client.pull_manifest_raw(&reference, auth, ACCEPTED).await {
        Ok(found) => found,
        Err(e) => {
            let mut error = FetchError::from_client(&e);
            if error.class == PullErrorClass::Unauthorized
                && let Some(why) = endpoint.explain_refusal(&reference).await
            {
                error.message = format!("{}: {why}", error.message);
            }
            return Err(error);
        }
    };
    let actual = Digest::of(&body);
    match digest {
        Some(wanted) if *wanted != actual => Err(FetchError::new(
            PullErrorClass::Invalid,
            format!("manifest has digest {actual}, {wanted} was asked for"),
        )),
        _ => Ok((body.to_vec(), actual)),
    }
}

async fn fetch_blob(
    endpoint: &Endpoint,
    descriptor: &Descriptor,
    file: &mut tokio::fs::File,
    on_bytes: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), FetchError> {
    let local = |e: io::Error| {
        FetchError::new(
            PullErrorClass::Transient,
            format!("cannot write the download: {e}"),
        )
    };
    file.set_len(0).await.map_err(local)?;
    file.rewind().await.map_err(local)?;
    let reference = endpoint.by_digest(&descriptor.digest);
    let (client, auth) = endpoint.session()?;
    client
        .store_auth_if_needed(reference.resolve_registry(), auth)
        .await;
    // Only the digest is given: the client would follow the descriptor's `urls` to any host.
    let mut stream = client
        .pull_blob_stream(&reference, descriptor.digest.as_str())
        .await
        .map_err(|e| FetchError::from_client(&e))?;
    let wrong_size = |got: u64| {
        let want = descriptor.size;
        FetchError::new(
            PullErrorClass::Invalid,
            format!("blob has {got} bytes, the manifest says {want}"),
        )
    };
    if let Some(length) = stream.content_length
        && length != descriptor.size
    {
        return Err(wrong_size(length));
    }
    let mut writer = tokio::io::BufWriter::with_capacity(512 * 1024, file);
    let mut got = 0_u64;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| stream_error(&e, &descriptor.digest))?;
        got += chunk.len() as u64;
        if got > descriptor.size {
            return Err(wrong_size(got));
        }
        writer.write_all(&chunk).await.map_err(local)?;
        on_bytes(chunk.len() as u64);
    }
    writer.flush().await.map_err(local)?;
    if got == descriptor.size {
        Ok(())
    } else {
        Err(wrong_size(got))
    }
}

/// The stream verifies the digest at its end; anything else is the connection's fault.
fn stream_error(error: &io::Error, wanted: &Digest) -> FetchError {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<ClientDigestError>())
    {
        Some(ClientDigestError::VerificationError { actual, .. }) => FetchError::new(
            PullErrorClass::Invalid,
            format!("blob has digest {actual}, the manifest says {wanted}"),
        ),
        Some(other) => FetchError::new(PullErrorClass::Invalid, other.to_string()),
        None => FetchError::new(PullErrorClass::Transient, chain(error)),
    }
}
