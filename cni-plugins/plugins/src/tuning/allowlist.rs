//! Which kernel settings the machine's owner lets a configuration change.

use std::{fs, io, path::Path};

use regex_lite::Regex;
use skiff_cni::types::{CniError, code};

/// One regular expression in each line. Without the file every setting of the network may be changed.
const FILE: &str = "/etc/cni/tuning/allowlist.conf";

/// # Errors
/// Code 7 for a key that no line allows, and for a line that is not a regular expression.
pub(super) fn check<'a>(keys: impl Iterator<Item = &'a str>) -> Result<(), CniError> {
    match fs::read_to_string(Path::new(FILE)) {
        Ok(text) => check_against(&text, keys),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CniError::from_error(
            code::IO,
            format!("cannot read {FILE}"),
            &error,
        )),
    }
}

fn check_against<'a>(text: &str, keys: impl Iterator<Item = &'a str>) -> Result<(), CniError> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let patterns: Vec<Regex> = lines
        .map(|line| {
            Regex::new(line).map_err(|error| {
                let msg = format!("{FILE}: {line:?} is not a regular expression");
                CniError::from_error(code::CONFIG, msg, &error)
            })
        })
        .collect::<Result<_, _>>()?;
    for key in keys {
        if !patterns.iter().any(|pattern| pattern.is_match(key)) {
            let msg = format!("sysctl {key:?} is not allowed by {FILE}");
            return Err(CniError::config(msg));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_allowed_by_a_line_that_matches_it() {
        let check = |text, key| check_against(text, [key].into_iter());
        let text = "\n  ^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$ \nsomaxconn\n";
        assert!(check(text, "net.ipv4.conf.IFNAME.log_martians").is_ok());
        assert!(check(text, "net.core.somaxconn").is_ok());
        assert_eq!(check(text, "net.ipv4.ip_forward").unwrap_err().code, 7);
        assert_eq!(check("", "net.ipv4.ip_forward").unwrap_err().code, 7);
        assert_eq!(check("(", "net.ipv4.ip_forward").unwrap_err().code, 7);
        assert!(check_against("", std::iter::empty()).is_ok());
    }
}
