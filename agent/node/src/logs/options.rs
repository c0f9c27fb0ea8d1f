//! What part of a log is wanted.

use jiff::{SignedDuration, Timestamp};

/// Options of `GET .../log`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    /// Go on when the end is reached, as long as the container runs.
    pub(crate) follow: bool,
    /// The instance before the current one.
    pub(crate) previous: bool,
    /// Put the time before each line.
    pub(crate) timestamps: bool,
    /// Only that many lines from the end.
    pub(crate) tail: Option<usize>,
    /// Only lines from then on.
    pub(crate) since: Option<Timestamp>,
    /// No more than that many bytes.
    pub(crate) limit: Option<u64>,
    /// Only this stream.
    pub(crate) stream: Option<super::Stream>,
}

/// A parameter that is not valid; the text names it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid value {value:?} for parameter {name}")]
pub(crate) struct BadParameter {
    name: String,
    value: String,
}

impl LogOptions {
    /// Reads the query's parameters; unknown ones are passed over.
    pub(crate) fn parse(query: &[(String, String)], now: Timestamp) -> Result<Self, BadParameter> {
        let mut options = Self::default();
        for (name, value) in query {
            let bad = || BadParameter {
                name: name.clone(),
                value: value.clone(),
            };
            let number = || {
                value
                    .parse::<i64>()
                    .ok()
                    .filter(|number| *number >= 0)
                    .ok_or_else(bad)
            };
            let flag = || match value.as_str() {
                "true" | "1" | "" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(bad()),
            };
            match name.as_str() {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => {
                    options.tail = Some(usize::try_from(number()?).unwrap_or(usize::MAX));
                }
                "limitBytes" => {
                    options.limit = Some(u64::try_from(number()?).unwrap_or(u64::MAX));
                }
                "sinceSeconds" => {
                    let ago = SignedDuration::from_secs(number()?);
                    options.since = Some(now.saturating_sub(ago).unwrap_or(Timestamp::MIN));
                }
                "sinceTime" => options.since = Some(value.parse().map_err(|_bad| bad())?),
                "stream" => {
                    options.stream = match value.as_str() {
                        "" | "All" => None,
                        "Stdout" => Some(super::Stream::Stdout),
                        "Stderr" => Some(super::Stream::Stderr),
                        _ => return Err(bad()),
                    };
                }
                _ => {}
            }
        }
        Ok(options)
    }
}
