//! Ages as upstream's `duration.HumanDuration` prints them.

use std::time::Duration;

/// A duration in at most two units: `17s`, `3m22s`, `5h`, `5d4h`, `2y34d`.
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |big: u64, big_unit: char, small: u64, small_unit: char| {
        if small == 0 {
            format!("{big}{big_unit}")
        } else {
            format!("{big}{big_unit}{small}{small_unit}")
        }
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        two(minutes, 'm', seconds % 60, 's')
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, 'h', minutes % 60, 'm')
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 192 {
        two(days, 'd', hours % 24, 'h')
    } else if hours < 24 * 365 * 2 {
        format!("{days}d")
    } else if hours < 24 * 365 * 8 {
        two(years, 'y', days % 365, 'd')
    } else {
        format!("{years}y")
    }
}

/// Time passed between two moments, zero when `since` lies ahead.
pub fn age(since: jiff::Timestamp, now: jiff::Timestamp) -> String {
    human_duration(Duration::try_from(now.duration_since(since)).unwrap_or_default())
}

/// The age of an RFC 3339 time, `<unknown>` if there is none.
pub fn age_of(since: Option<&str>, now: jiff::Timestamp) -> String {
    since
        .and_then(|text| text.parse().ok())
        .map_or_else(|| "<unknown>".to_owned(), |since| age(since, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_print_as_upstream() {
        const M: u64 = 60;
        const H: u64 = 3600;
        const D: u64 = 24 * H;
        let cases = [
            (0, "0s"),
            (1, "1s"),
            (70, "70s"),
            (119, "119s"),
            (2 * M, "2m"),
            (3 * M + 22, "3m22s"),
            (9 * M + 59, "9m59s"),
            (10 * M + 1, "10m"),
            (179 * M, "179m"),
            (3 * H, "3h"),
            (3 * H + 4 * M, "3h4m"),
            (8 * H + 4 * M, "8h"),
            (47 * H, "47h"),
            (48 * H, "2d"),
            (2 * D + H, "2d1h"),
            (5 * D + 4 * H, "5d4h"),
            (8 * D + 4 * H, "8d"),
            (400 * D, "400d"),
            (729 * D, "729d"),
            (2 * 365 * D, "2y"),
            (2 * 365 * D + 34 * D, "2y34d"),
            (8 * 365 * D + 34 * D, "8y"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(
                human_duration(Duration::from_secs(seconds)),
                expected,
                "{seconds} s"
            );
        }
    }

    #[test]
    fn age_of_the_future_is_zero_and_of_nothing_unknown() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(age_of(Some("2026-01-01T00:01:00Z"), now), "0s");
        assert_eq!(age_of(Some("2025-12-31T23:00:00Z"), now), "60m");
        assert_eq!(age_of(None, now), "<unknown>");
        assert_eq!(age_of(Some("yesterday"), now), "<unknown>");
    }
}
