//! Tests of quantities.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Quantity {
    Quantity::parse(text).unwrap()
}

#[test]
fn values_in_units_and_thousandths() {
    let cases = [
        ("0", 0, 0),
        ("1", 1, 1000),
        ("100m", 1, 100),
        ("1500m", 2, 1500),
        ("0.1", 1, 100),
        (".5", 1, 500),
        ("5.", 5, 5000),
        ("+2", 2, 2000),
        ("-2", -2, -2000),
        ("-1500m", -2, -1500),
        ("1k", 1000, 1_000_000),
        ("1Ki", 1024, 1_024_000),
        ("128Mi", 134_217_728, 134_217_728_000),
        ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
        ("2e3", 2000, 2_000_000),
        ("2E-3", 1, 2),
        ("1E", 1_000_000_000_000_000_000, i64::MAX),
        ("100u", 1, 1),
        ("1n", 1, 1),
        ("0.0000000001", 1, 1),
        ("8Ei", i64::MAX, i64::MAX),
        ("99999999999999999999", i64::MAX, i64::MAX),
        ("-99999999999999999999", -i64::MAX, i64::MIN),
        ("1e999999999999", i64::MAX, i64::MAX),
        ("1e-999999999999", 1, 1),
        ("0e999999999999", 0, 0),
        ("0.1Ei", 115_292_150_460_684_698, i64::MAX),
    ];
    for (text, value, milli) in cases {
        assert_eq!(parse(text).value(), value, "{text}");
        assert_eq!(parse(text).milli_value(), milli, "{text} in thousandths");
    }
}

#[test]
fn canonical_form() {
    let cases = [
        ("0", "0"),
        ("0Gi", "0"),
        ("1", "1"),
        ("1000m", "1"),
        ("0.5", "500m"),
        ("1.5Gi", "1536Mi"),
        ("1024Mi", "1Gi"),
        ("1024", "1024"),
        ("1000", "1k"),
        ("1000M", "1G"),
        ("100Ki", "100Ki"),
        ("0.5Ki", "512"),
        ("2e3", "2e3"),
        ("1500e0", "1500"),
        ("-1500m", "-1500m"),
        ("0.1m", "100u"),
    ];
    for (text, canonical) in cases {
        assert_eq!(parse(text).to_string(), canonical, "{text}");
    }
}

#[test]
fn malformed_quantities_are_refused() {
    let cases = [
        "", "x", "1x", "1mi", "1 Gi", "Gi", ".", "1.2.3", "--1", "1e", "1eX", "1K", "1kB", "0x10",
        "1e1.5", "١",
    ];
    for text in cases {
        assert_eq!(Quantity::parse(text), Err(QuantityError), "{text:?}");
    }
}

#[test]
fn quantities_compare_by_amount() {
    assert_eq!(parse("1Gi"), parse("1024Mi"));
    assert!(parse("1G") < parse("1Gi"));
    assert!(parse("-1") < Quantity::ZERO);
    assert!(parse("999m") < parse("1"));
    assert_eq!(parse("1.5").plus(parse("500m")).to_string(), "2");
    assert_eq!(Quantity::ZERO.plus(parse("1Gi")).to_string(), "1Gi");
    assert_eq!(parse("1Gi").minus(parse("1Mi")).to_string(), "1023Mi");
    assert_eq!(Quantity::from_milli(250).to_string(), "250m");
    assert_eq!(Quantity::from_bytes(1 << 20).to_string(), "1Mi");
    assert_eq!(Quantity::from_units(3).to_string(), "3");
}

proptest! {
    #[test]
    fn prop_canonical_form_keeps_the_amount(
        whole in 0_u32..2_000_000,
        fraction in proptest::option::of("[0-9]{1,6}"),
        suffix in prop::sample::select(vec!["", "m", "k", "M", "G", "Ki", "Mi", "Gi", "e2", "E-1"]),
        sign in prop::sample::select(vec!["", "-", "+"]),
    ) {
        let fraction = fraction.map(|f| format!(".{f}")).unwrap_or_default();
        let text = format!("{sign}{whole}{fraction}{suffix}");
        let quantity = parse(&text);
        let canonical = quantity.to_string();
        prop_assert_eq!(parse(&canonical), quantity, "{} -> {}", text, canonical);
        prop_assert_eq!(parse(&canonical).to_string(), canonical);
    }

    #[test]
    fn prop_any_text_is_an_answer(text in "\\PC{0,40}") {
        if let Ok(quantity) = Quantity::parse(&text) {
            prop_assert!(Quantity::parse(&quantity.to_string()).is_ok());
        }
    }

    #[test]
    fn prop_numeric_text_never_overflows(text in "[+-]?[0-9]{0,45}\\.?[0-9]{0,45}(n|u|m|k|M|G|T|P|E|Ki|Ei|Pi|[eE][+-]?[0-9]{1,12})?") {
        if let Ok(quantity) = Quantity::parse(&text) {
            prop_assert_eq!(quantity.is_negative(), quantity.value() < 0);
            prop_assert_eq!(parse(&quantity.to_string()), quantity);
        }
    }
}
