//! Kubernetes quantities (`100m`, `128Mi`, `1e3`) as whole numbers, rounded up.

/// A text that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity")]
pub struct QuantityError(String);

/// Thousandths: `250m` is 250, `1` is 1000.
///
/// # Errors
/// [`QuantityError`] if it is malformed or too large.
pub fn parse_millis(text: &str) -> Result<i64, QuantityError> {
    parse(text, 3).ok_or_else(|| QuantityError(text.to_owned()))
}

/// Whole units: `1Ki` is 1024.
///
/// # Errors
/// [`QuantityError`] if it is malformed or too large.
pub fn parse_bytes(text: &str) -> Result<i64, QuantityError> {
    parse(text, 0).ok_or_else(|| QuantityError(text.to_owned()))
}

/// The value times ten to the power of `scale`.
fn parse(text: &str, scale: i32) -> Option<i64> {
    let (negative, body) = match text.strip_prefix('-') {
        Some(body) => (true, body),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = body
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(body.len());
    let (number, suffix) = body.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 30 {
        return None;
    }
    let mut mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let mut exponent = scale - i32::try_from(fraction.len()).ok()?;
    let binary = match suffix {
        "Ki" => 1,
        "Mi" => 2,
        "Gi" => 3,
        "Ti" => 4,
        "Pi" => 5,
        "Ei" => 6,
        _ => 0,
    };
    mantissa = mantissa.checked_mul(1_i128 << (10 * binary))?;
    exponent += match suffix {
        "n" => -9,
        "u" => -6,
        "m" => -3,
        "k" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        "P" => 15,
        "E" => 18,
        "" => 0,
        _ if binary > 0 => 0,
        // `1e3`, `1E3`
        other => other
            .strip_prefix(['e', 'E'])?
            .parse::<i32>()
            .ok()
            .filter(|e| e.abs() <= 30)?,
    };
    while exponent > 0 {
        mantissa = mantissa.checked_mul(10)?;
        exponent -= 1;
    }
    let mut divisor = 1_i128;
    while exponent < 0 {
        divisor = divisor.checked_mul(10)?;
        exponent += 1;
    }
    let up = mantissa.div_euclid(divisor) + i128::from(mantissa.rem_euclid(divisor) != 0);
    i64::try_from(if negative { -up } else { up }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_and_rounded_up() {
        for (text, millis) in [
            ("100m", 100),
            ("1", 1000),
            ("1.5", 1500),
            (".5", 500),
            ("100u", 1),
            ("2e1", 20_000),
            ("1k", 1_000_000),
            ("-1", -1000),
        ] {
            assert_eq!(parse_millis(text), Ok(millis), "{text}");
        }
        for (text, bytes) in [
            ("128Mi", 128 << 20),
            ("1G", 1_000_000_000),
            ("1.5Gi", 3 << 29),
            ("1E", 1_000_000_000_000_000_000),
            ("100m", 1),
            ("0", 0),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "x",
            "1x",
            "1.2.3",
            "Mi",
            "1 Mi",
            "1e",
            "1e99",
            "100000000E",
            "--1",
            ".",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
