//! The one way a request fails: a boxed `metav1.Status`.

use std::ops::Deref;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use skiff_api::status::ApiStatus;
use skiff_storage::StorageError;

use crate::cache::{NotFresh, TooOld};

/// Why a request failed, as the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure(Box<ApiStatus>);

impl Deref for Failure {
    type Target = ApiStatus;

    fn deref(&self) -> &ApiStatus {
        &self.0
    }
}

impl From<ApiStatus> for Failure {
    fn from(status: ApiStatus) -> Self {
        Self(Box::new(status))
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        if matches!(error, StorageError::Closed) {
            return ApiStatus::unavailable("the store is closed").into();
        }
        tracing::error!(error = &error as &dyn std::error::Error, "storage failed");
        ApiStatus::internal(error).into()
    }
}

impl From<NotFresh> for Failure {
    fn from(error: NotFresh) -> Self {
        ApiStatus::too_large_resource_version(error.wanted.0, error.current.0).into()
    }
}

impl TooOld {
    /// As the client is told that asked for `requested`.
    pub(crate) fn to_status(self, requested: skiff_storage::Revision) -> ApiStatus {
        ApiStatus::too_old(requested.0, self.oldest.0)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (
            code,
            [(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            )],
            self.to_value().to_string(),
        )
            .into_response();
        let retry = self
            .details
            .as_ref()
            .and_then(|details| details.retry_after_seconds);
        if let Some(seconds) = retry {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        if code == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
