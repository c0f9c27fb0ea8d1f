//! `$(NAME)` in commands, arguments and environment values, by upstream's rules.

/// Replaces `$(NAME)` by what `lookup` knows; unknown names stay as they are, and `$$` is a plain `$`.
pub fn expand(text: &str, mut lookup: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let after = from.get(1..).unwrap_or_default();
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn references_are_replaced_as_upstream_does() {
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)$(B)y", "x12y"),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("a$", "a$"),
            ("$()", "$()"),
            ("$(EMPTY)", ""),
            ("$(REF)", "$(A)"),
            ("price: 5$ $(A)", "price: 5$ 1"),
        ] {
            let got = expand(text, |name| match name {
                "A" => Some("1".to_owned()),
                "B" => Some("2".to_owned()),
                "EMPTY" => Some(String::new()),
                "REF" => Some("$(A)".to_owned()),
                _ => None,
            });
            assert_eq!(got, want, "{text}");
        }
    }
}
