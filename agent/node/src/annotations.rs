//! Keys of the facts that the node keeps with each container, so that a later daemon can adopt it.

/// Image reference as the pod names it.
pub(crate) const IMAGE: &str = "skiff.io/image";
/// Digest reference of the image, as `imageID` shows it.
pub(crate) const IMAGE_ID: &str = "skiff.io/image-id";
/// Key of the root filesystem's snapshot.
pub(crate) const SNAPSHOT: &str = "skiff.io/snapshot";
/// Log file.
pub(crate) const LOG_PATH: &str = "skiff.io/log-path";
/// Signal that stops the container.
pub(crate) const STOP_SIGNAL: &str = "skiff.io/stop-signal";
/// File on the node that is mounted at the container's `terminationMessagePath`.
pub(crate) const TERMINATION_LOG: &str = "skiff.io/termination-log";
