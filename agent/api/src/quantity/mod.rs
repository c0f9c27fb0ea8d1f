//! Resource quantities: `100m`, `1.5Gi`, `2e3`.

use std::cmp::Ordering;
use std::fmt;

/// Why a quantity does not parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)]
pub struct QuantityError;

/// How a quantity is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Format {
    Decimal,
    Exponent,
    Binary,
}

/// A resource quantity. Exact to a billionth; larger than 2^63-1 is capped, as upstream has it.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    /// Billionths.
    nanos: i128,
    format: Format,
}

const NANO: i128 = 1_000_000_000;
const CAP: i128 = i64::MAX as i128 * NANO;

impl Quantity {
    /// Nothing at all.
    pub const ZERO: Quantity = Quantity {
        nanos: 0,
        format: Format::Decimal,
    };

    /// A whole number, written with decimal suffixes.
    pub fn from_units(units: i64) -> Quantity {
        Quantity {
            nanos: i128::from(units) * NANO,
            format: Format::Decimal,
        }
    }

    /// Thousandths, such as milli-CPUs.
    pub fn from_milli(milli: i64) -> Quantity {
        Quantity {
            nanos: i128::from(milli) * (NANO / 1000),
            format: Format::Decimal,
        }
        .capped()
    }

    /// Bytes, written with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Quantity {
        Quantity {
            nanos: i128::from(bytes) * NANO,
            format: Format::Binary,
        }
    }

    /// Reads a quantity.
    ///
    /// # Errors
    /// [`QuantityError`] if it is malformed.
    pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError);
        }
        let (multiplier, format) = suffix_of(suffix)?;
        let nanos = scaled(whole, fraction, multiplier);
        let nanos = if negative { -nanos } else { nanos };
        Ok(Quantity { nanos, format }.capped())
    }

    fn capped(self) -> Quantity {
        Quantity {
            nanos: self.nanos.clamp(-CAP, CAP),
            ..self
        }
    }

    /// Whole units, rounded up (away from zero).
    pub fn value(self) -> i64 {
        saturate(div_up(self.nanos, NANO))
    }

    /// Thousandths, rounded up (away from zero).
    pub fn milli_value(self) -> i64 {
        saturate(div_up(self.nanos, NANO / 1000))
    }

    /// Whether it is zero.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it has no fraction.
    pub fn is_integer(self) -> bool {
        self.nanos % NANO == 0
    }

    /// The sum, written as `self` is (as `other` if `self` is zero).
    #[must_use]
    pub fn plus(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Quantity {
            nanos: self.nanos.saturating_add(other.nanos),
            format,
        }
        .capped()
    }

    /// The difference, written as `self` is.
    #[must_use]
    pub fn minus(self, other: Quantity) -> Quantity {
        Quantity {
            nanos: self.nanos.saturating_sub(other.nanos),
            ..self
        }
        .capped()
    }
}

/// What one unit of the number stands for.
#[derive(Clone, Copy)]
enum Multiplier {
    /// Ten to this power.
    Ten(i32),
    /// Two to this power.
    Two(u32),
}

fn suffix_of(suffix: &str) -> Result<(Multiplier, Format), QuantityError> {
    let decimal = |power| Ok((Multiplier::Ten(power), Format::Decimal));
    let binary = |power| Ok((Multiplier::Two(power), Format::Binary));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError)?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
                return Err(QuantityError);
            }
            // The grammar has no limit; what does not fit is zero or the cap anyway.
            let limit = if exponent.starts_with('-') {
                -1000
            } else {
                1000
            };
            Ok((
                Multiplier::Ten(exponent.parse().unwrap_or(limit)),
                Format::Exponent,
            ))
        }
    }
}

/// `whole.fraction * multiplier` in billionths, rounded up, capped.
fn scaled(whole: &str, fraction: &str, multiplier: Multiplier) -> i128 {
    let fraction = fraction.trim_end_matches('0');
    let mut mantissa: i128 = 0;
    // Digits past what matters only decide about rounding up.
    let mut dropped_whole = 0_i32;
    let mut dropped_nonzero = false;
    let mut kept_fraction = 0_i32;
    for (index, digit) in whole.bytes().chain(fraction.bytes()).enumerate() {
        let in_fraction = index >= whole.len();
        if mantissa < 10_i128.pow(27) {
            mantissa = mantissa * 10 + i128::from(digit - b'0');
            kept_fraction += i32::from(in_fraction);
        } else {
            dropped_nonzero |= digit != b'0';
            dropped_whole += i32::from(!in_fraction);
        }
    }
    if mantissa == 0 {
        return 0;
    }
    let (power, binary) = match multiplier {
        Multiplier::Ten(power) => (power, 0),
        Multiplier::Two(power) => (0, power),
    };
    let exponent = power.saturating_add(9 + dropped_whole - kept_fraction);
    let Some(product) = mantissa.checked_mul(1_i128 << binary) else {
        return if exponent >= -9 {
            CAP
        } else {
            coarse(mantissa, binary, exponent)
        };
    };
    if exponent >= 0 {
        return u32::try_from(exponent)
            .ok()
            .and_then(|e| 10_i128.checked_pow(e))
            .and_then(|factor| product.checked_mul(factor))
            .map_or(CAP, |nanos| nanos.min(CAP));
    }
    match u32::try_from(-exponent)
        .ok()
        .and_then(|e| 10_i128.checked_pow(e))
    {
        Some(divisor) => {
            let exact = product % divisor == 0 && !dropped_nonzero;
            (product / divisor + i128::from(!exact)).min(CAP)
        }
        None => 1,
    }
}

/// For mantissas whose binary multiple does not fit: divide first, the fraction is far below a billionth.
fn coarse(mantissa: i128, binary: u32, exponent: i32) -> i128 {
    let divisor = 10_i128
        .checked_pow(exponent.unsigned_abs())
        .unwrap_or(i128::MAX);
    let (quotient, remainder) = (mantissa / divisor, mantissa % divisor);
    let high = quotient.checked_mul(1_i128 << binary).unwrap_or(CAP);
    let scale = 1_i128 << binary.min(40);
    let low = remainder / (divisor / scale).max(1) * (1_i128 << (binary - binary.min(40)));
    high.saturating_add(low).min(CAP)
}

fn div_up(value: i128, divisor: i128) -> i128 {
    value / divisor + (value % divisor).signum()
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Quantity, QuantityError> {
        Quantity::parse(text)
    }
}

/// The canonical form: no fraction, the largest suffix that fits.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // Below 1 Ki (and fractions) binary falls back to decimal, as upstream has it.
        let binary = self.format == Format::Binary
            && self.nanos % NANO == 0
            && (self.nanos / NANO).unsigned_abs() >= 1024;
        if binary {
            let mut units = self.nanos / NANO;
            let mut suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter();
            let mut suffix = suffixes.next();
            while units % 1024 == 0 {
                units /= 1024;
                suffix = suffixes.next();
            }
            return write!(f, "{units}{}", suffix.unwrap_or(&""));
        }
        let mut number = self.nanos;
        let mut power = -9;
        while number % 1000 == 0 && power < 18 {
            number /= 1000;
            power += 3;
        }
        write!(f, "{number}")?;
        if self.format == Format::Exponent {
            return if power == 0 {
                Ok(())
            } else {
                write!(f, "e{power}")
            };
        }
        f.write_str(match power {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            18 => "E",
            _ => "",
        })
    }
}

#[cfg(test)]
mod tests;
