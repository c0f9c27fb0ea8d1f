//! Names that become file names, link names and arguments: checked where they come in.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A name that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {value:?}: {rule}")]
pub struct InvalidName {
    /// Which kind of name.
    pub what: &'static str,
    /// The name.
    pub value: String,
    /// What it must be.
    pub rule: &'static str,
}

const WORD_RULE: &str =
    "must begin with a letter or digit and hold only letters, digits, '_', '.' and '-'";

/// The rule of the specification for container ids and network names.
fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_ifname(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text
            .chars()
            // The kernel makes another name of one with '%'.
            .any(|c| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control())
}

/// A plugin is found by joining its type to a folder: it must stay in there.
fn is_plugin_type(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && !text.contains(['/', '\0'])
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:ident, $rule:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(value: String) -> Result<Self, InvalidName> {
                if $check(&value) {
                    Ok(Self(value))
                } else {
                    Err(InvalidName { what: $what, value, rule: $rule })
                }
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(value: &str) -> Result<Self, InvalidName> {
                Self::try_from(value.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The id by which a runtime calls a container (for Kubernetes: its sandbox).
    ContainerId, "container id", is_word, WORD_RULE
);
name!(
    /// The name of a network: one configuration list.
    NetworkName, "network name", is_word, WORD_RULE
);
name!(
    /// The name of a network link.
    IfName, "interface name", is_ifname,
    "must have 1 to 15 characters without '/', ':', '%' and spaces, and not be '.' or '..'"
);
name!(
    /// The file name of a plugin.
    PluginType, "plugin type", is_plugin_type, "must be a file name"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_escape_their_place_are_refused() {
        for bad in ["", "../x", "a/b", "-a", ".a", "a b", "ä", "a\n"] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
            assert!(bad.parse::<NetworkName>().is_err(), "{bad:?}");
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a:b",
            "a b",
            "sixteen-letters-",
            "a\0",
            "eth%d",
        ] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
        for bad in ["", ".", "..", "../x", "/bin/sh"] {
            assert!(bad.parse::<PluginType>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn common_names_are_accepted() {
        assert!("cni-0_1.x".parse::<ContainerId>().is_ok());
        assert!("fifteen-letters".parse::<IfName>().is_ok());
        assert!("host-local".parse::<PluginType>().is_ok());
        assert_eq!(
            serde_json::to_string(&"eth0".parse::<IfName>().unwrap()).unwrap(),
            r#""eth0""#
        );
        assert!(serde_json::from_str::<IfName>(r#""a/b""#).is_err());
    }
}
