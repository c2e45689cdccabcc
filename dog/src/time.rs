//! Durations and dates as people write and read them.

const UNITS: [(char, u64); 5] =
    [('w', 7 * 86_400_000), ('d', 86_400_000), ('h', 3_600_000), ('m', 60_000), ('s', 1000)];

/// `24h`, `90m`, `7d`, `2w`, `30s`, several of them (`1d12h`), or `0`: milliseconds.
pub fn duration(text: &str) -> Result<u64, String> {
    let bad = || format!("\"{text}\" is not a duration: write for example 24h, 30m or 7d (w, d, h, m, s)");
    if text == "0" {
        return Ok(0);
    }
    let (mut sum, mut number) = (0u64, String::new());
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let (_, unit) = UNITS.iter().find(|u| u.0 == c).ok_or_else(bad)?;
        let n: u64 = number.parse().map_err(|_| bad())?;
        number.clear();
        sum = n.checked_mul(*unit).and_then(|ms| sum.checked_add(ms)).ok_or_else(bad)?;
    }
    if text.is_empty() || !number.is_empty() { Err(bad()) } else { Ok(sum) }
}

/// As `duration` takes it, in the largest units.
pub fn show(mut ms: u64) -> String {
    let mut out = String::new();
    // A day is what people have in mind with 24 h.
    let units = if ms <= 86_400_000 { &UNITS[2..] } else { &UNITS[1..] };
    for (c, unit) in units {
        let n = ms / unit;
        ms %= unit;
        if n > 0 {
            out.push_str(&format!("{n}{c}"));
        }
    }
    if out.is_empty() { "0".into() } else { out }
}

/// When something ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Milliseconds since the Unix epoch.
    At(u64),
    /// Milliseconds from now on.
    For(u64),
}

/// `2027-01-31`, `2027-01-31T12:30:00Z` (both UTC), or a duration.
pub fn until(text: &str) -> Result<Until, String> {
    if let Ok(ms) = duration(text) {
        return Ok(Until::For(ms));
    }
    date(text).map(Until::At).ok_or_else(|| {
        format!("\"{text}\" is neither a date (2027-01-31, 2027-01-31T12:30:00Z) nor a duration (30d, 24h)")
    })
}

/// In UTC, with or without the time of day.
fn date(text: &str) -> Option<u64> {
    let number = |s: &str, digits: usize| -> Option<u64> {
        (s.len() == digits && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok())?
    };
    let (day, time) = match text.split_once(['T', ' ']) {
        None => (text, "00:00:00"),
        Some((day, time)) => (day, time.strip_suffix('Z').unwrap_or(time)),
    };
    let mut parts = day.splitn(3, '-');
    let (year, month, day) =
        (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let mut parts = time.splitn(3, ':');
    let (hours, minutes) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let seconds = parts.next().map_or(Some(0), |s| number(s, 2))?;
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let february = if leap { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let there = year >= 1970 && (1..=12).contains(&month) && hours < 24 && minutes < 60 && seconds < 60;
    if !there || !(1..=lengths[month as usize - 1]).contains(&day) {
        return None;
    }
    // Years begin in March, so that the odd day is the last one.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_proto::time::timestamp;

    #[test]
    fn durations() {
        for (text, want) in
            [("0", 0), ("24h", 86_400_000), ("1d12h", 129_600_000), ("30s", 30_000), ("2w", 1_209_600_000)]
        {
            assert_eq!(duration(text), Ok(want), "{text}");
        }
        for text in ["", "h", "24", "24x", "1d2", "-1h", "99999999999999999w", "1.5h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for (ms, want) in
            [(0, "0"), (86_400_000, "24h"), (129_600_000, "1d12h"), (90_000, "1m30s"), (1_209_600_000, "14d")]
        {
            assert_eq!(show(ms), want);
            assert_eq!(duration(want), Ok(ms));
        }
    }

    #[test]
    fn dates() {
        for (text, want) in [
            ("1970-01-01", "1970-01-01T00:00:00Z"),
            ("2000-02-29", "2000-02-29T00:00:00Z"),
            ("2027-12-31T23:59:58Z", "2027-12-31T23:59:58Z"),
            ("2027-01-31 12:30", "2027-01-31T12:30:00Z"),
            ("2400-03-01", "2400-03-01T00:00:00Z"),
        ] {
            let Ok(Until::At(ms)) = until(text) else { panic!("{text}") };
            assert_eq!(timestamp(ms), want);
        }
        for text in [
            "2027-02-29",
            "2100-02-29",
            "2027-13-01",
            "2027-00-01",
            "2027-1-1",
            "1969-12-31",
            "tomorrow",
            "2027-01-31T24:00:00Z",
            "2027-01-31T",
            "2027-01-31T12:00:00+01:00",
        ] {
            assert!(until(text).is_err(), "{text}");
        }
        assert_eq!(until("7d"), Ok(Until::For(7 * 86_400_000)));
    }
}
