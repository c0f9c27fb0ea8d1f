//! The grammar of names, labels and keys. Each check returns what is wrong, in upstream's words.

const DNS1123_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const DNS1123_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const DNS1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const ENV_VAR_NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";
const CONFIG_MAP_KEY: &str =
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";

fn with_regex(message: &str, examples: &[&str], regex: &str) -> String {
    let mut out = message.to_owned();
    if examples.is_empty() {
        return format!("{out} (regex used for validation is '{regex}')");
    }
    out.push_str(" (e.g. ");
    for (index, example) in examples.iter().enumerate() {
        if index > 0 {
            out.push_str(" or ");
        }
        out.push_str(&format!("'{example}', "));
    }
    format!("{out}regex used for validation is '{regex}')")
}

/// "must be no more than 63 characters" or bytes, as upstream has it for names.
pub(crate) fn max_length(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn lower_alnum(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|c| lower_alnum(*c))
        && bytes.last().is_some_and(|c| lower_alnum(*c))
        && bytes.iter().all(|c| lower_alnum(*c) || *c == b'-')
}

/// RFC 1123 label, at most 63 characters: namespaces, containers, volumes.
pub(crate) fn dns1123_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push(max_length(63));
    }
    if !is_dns_label(text) {
        let regex = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
        errors.push(with_regex(DNS1123_LABEL, &["my-name", "123-abc"], regex));
    }
    errors
}

/// RFC 1123 subdomain, at most 253 characters: most objects' names.
pub(crate) fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 253 {
        errors.push(max_length(253));
    }
    if !text.split('.').all(is_dns_label) {
        let regex = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
        errors.push(with_regex(DNS1123_SUBDOMAIN, &["example.com"], regex));
    }
    errors
}

/// RFC 1035 label: Service names.
pub(crate) fn dns1035_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push(max_length(63));
    }
    if !is_dns_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        let regex = "[a-z]([-a-z0-9]*[a-z0-9])?";
        errors.push(with_regex(DNS1035_LABEL, &["my-name", "abc-123"], regex));
    }
    errors
}

fn is_qualified_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(c))
}

/// `prefix/name` with an optional prefix: label and annotation keys, finalizers, resource names.
pub(crate) fn qualified_name(text: &str) -> Vec<String> {
    let regex = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
    let examples = ["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let mut parts = text.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, None) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(
                    dns1123_subdomain(prefix)
                        .into_iter()
                        .map(|e| format!("prefix part {e}")),
                );
            }
            name
        }
        _ => {
            let message = with_regex(QUALIFIED_NAME, &examples, regex).replacen(
                "name part",
                "a qualified name",
                1,
            );
            return vec![format!(
                "{message} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errors.push(format!("name part {}", max_length(63)));
    }
    if !is_qualified_part(name) {
        errors.push(with_regex(QUALIFIED_NAME, &examples, regex));
    }
    errors
}

/// Value of a label.
pub(crate) fn label_value(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push(max_length(63));
    }
    if !text.is_empty() && !is_qualified_part(text) {
        let regex = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
        errors.push(with_regex(
            LABEL_VALUE,
            &["MyValue", "my_value", "12345"],
            regex,
        ));
    }
    errors
}

/// Name of an environment variable (the relaxed rule that upstream has since 1.34).
pub(crate) fn env_var_name(text: &str) -> Vec<String> {
    let fine = !text.is_empty()
        && text
            .bytes()
            .all(|c| (b' '..=b'~').contains(&c) && c != b'=');
    if fine {
        Vec::new()
    } else {
        vec![ENV_VAR_NAME.to_owned()]
    }
}

/// Key of a ConfigMap or Secret.
pub(crate) fn config_map_key(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 253 {
        errors.push(max_length(253));
    }
    if text.is_empty()
        || !text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
    {
        let examples = ["key.name", "KEY_NAME", "key-name"];
        errors.push(with_regex(CONFIG_MAP_KEY, &examples, "[-._a-zA-Z0-9]+"));
    } else if text == "." {
        errors.push("must not be '.'".to_owned());
    } else if text == ".." {
        errors.push("must not be '..'".to_owned());
    } else if text.starts_with("..") {
        errors.push("must not start with '..'".to_owned());
    }
    errors
}

/// IANA service name: the name of a container port.
pub(crate) fn port_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 15 {
        errors.push("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().all(|c| lower_alnum(c) || c == b'-') {
        errors.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !text.bytes().any(|c| c.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// Port number.
pub(crate) fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_owned()]
    }
}

/// A name that must be usable as one path segment.
pub(crate) fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    let mut errors = Vec::new();
    for c in ['/', '%'] {
        if text.contains(c) {
            errors.push(format!("may not contain '{c}'"));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::super::Check;
    use super::*;

    #[test]
    fn names_follow_their_grammar() {
        let good: &[(Check, &[&str])] = &[
            (dns1123_label, &["a", "0", "a-b", "a--b"]),
            (dns1123_subdomain, &["a", "a.b", "0.1-2.c"]),
            (dns1035_label, &["a", "a1-b"]),
            (
                qualified_name,
                &[
                    "a",
                    "A_b.c-D",
                    "example.com/Name",
                    "kubernetes.io/metadata.name",
                ],
            ),
            (label_value, &["", "a", "A_b.c-D", "1"]),
            (env_var_name, &["A", "a.b", "with space", "_"]),
            (config_map_key, &["a", ".hidden", "A_b", "-"]),
            (
                port_name,
                &["http", "a-1", "123456789012345a".get(1..).unwrap_or("a")],
            ),
        ];
        for (check, names) in good {
            for name in *names {
                assert_eq!(check(name), Vec::<String>::new(), "{name:?}");
            }
        }
        let long = "a".repeat(64);
        let bad: &[(Check, &[&str])] = &[
            (dns1123_label, &["", "-a", "a-", "A", "a.b", "ä", &long]),
            (dns1123_subdomain, &["", ".a", "a.", "a..b", "A", "a_b"]),
            (dns1035_label, &["", "1a", "a.b", "-a"]),
            (
                qualified_name,
                &["", "/a", "a/", "a/b/c", "A.com/x", "-a", &long],
            ),
            (label_value, &["-a", "a-", "a b", &long]),
            (env_var_name, &["", "a=b", "ä", "a\n"]),
            (config_map_key, &["", "a/b", ".", "..", "..a"]),
            (
                port_name,
                &["", "1", "A", "a--b", "-a", "a-", "1234567890123456"],
            ),
        ];
        for (check, names) in bad {
            for name in *names {
                assert_ne!(check(name), Vec::<String>::new(), "{name:?}");
            }
        }
    }

    #[test]
    fn subdomain_message_is_upstreams() {
        assert_eq!(
            dns1123_subdomain("X"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
    }
}
