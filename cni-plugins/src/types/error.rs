//! The error that a plugin prints and a runner reads.

use serde_json::{Value, json};

use super::CniVersion;

/// The specification's error codes, and from 100 on our own.
pub mod code {
    /// Incompatible CNI version.
    pub const VERSION: u32 = 1;
    /// Unsupported field in the configuration; the message names it.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown or does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A necessary environment variable is missing or wrong.
    pub const ENVIRONMENT: u32 = 4;
    /// I/O failure, such as reading stdin.
    pub const IO: u32 = 5;
    /// Content that cannot be decoded.
    pub const DECODE: u32 = 6;
    /// The network configuration makes no sense.
    pub const CONFIG: u32 = 7;
    /// A transient condition: try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: the plugin cannot serve ADD.
    pub const UNAVAILABLE: u32 = 50;
    /// STATUS: the plugin cannot serve ADD and existing containers may have limited connectivity.
    pub const LIMITED: u32 = 51;
    /// The kernel refused a change.
    pub const KERNEL: u32 = 100;
    /// No address is left.
    pub const EXHAUSTED: u32 = 101;
    /// What is asked for exists already.
    pub const EXISTS: u32 = 102;
    /// CHECK: the state is not what it should be.
    pub const CHECK_FAILED: u32 = 103;
    /// The firewall refused a change.
    pub const FIREWALL: u32 = 104;
    /// A delegated plugin could not be run, or answered with nonsense.
    pub const DELEGATE: u32 = 105;
}

/// An error as the specification words it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg} (code {code}){}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// One of [`code`], or a foreign plugin's own.
    pub code: u32,
    /// What is wrong, in one line.
    pub msg: String,
    /// More, for whoever looks into it.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The configuration is wrong.
    pub fn config(msg: impl Into<String>) -> Self {
        Self::new(code::CONFIG, msg)
    }

    /// The configuration asks for what is not there.
    #[must_use]
    pub fn unsupported(field: &str) -> Self {
        Self::new(
            code::UNSUPPORTED_FIELD,
            format!("{field:?} is not supported"),
        )
    }

    /// The environment is wrong.
    pub fn environment(msg: impl Into<String>) -> Self {
        Self::new(code::ENVIRONMENT, msg)
    }

    /// An error with its chain of sources as details.
    pub fn from_error(code: u32, msg: impl Into<String>, error: &dyn std::error::Error) -> Self {
        let mut details = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            details.push_str(": ");
            details.push_str(&inner.to_string());
            source = inner.source();
        }
        Self {
            code,
            msg: msg.into(),
            details,
        }
    }

    /// Several errors of a tear-down as one; the first gives the code. `Ok` if there is none.
    ///
    /// # Errors
    /// The joined error, if there was any.
    pub fn join(errors: Vec<Self>) -> Result<(), Self> {
        let mut errors = errors.into_iter();
        let Some(mut first) = errors.next() else {
            return Ok(());
        };
        for error in errors {
            if !first.details.is_empty() {
                first.details.push_str("; ");
            }
            first.details.push_str(&error.to_string());
        }
        Err(first)
    }

    /// The object that goes to stdout.
    #[must_use]
    pub fn to_json(&self, version: CniVersion) -> Value {
        let mut object = json!({
            "cniVersion": version.as_str(),
            "code": self.code,
            "msg": self.msg,
        });
        if !self.details.is_empty() {
            object["details"] = Value::String(self.details.clone());
        }
        object
    }

    /// Reads a plugin's error; `None` if `value` is not one.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let code = u32::try_from(value.get("code")?.as_u64()?).ok()?;
        let text = |key| {
            value
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        Some(Self {
            code,
            msg: text("msg"),
            details: text("details"),
        })
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self.code,
            code::TRY_AGAIN | code::UNAVAILABLE | code::LIMITED
        )
    }
}
