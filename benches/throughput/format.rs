//! Numbers as people read them.

/// A whole number with commas.
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Milliseconds, with as many digits as tell something.
pub fn milliseconds(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0} ms"),
        1.0.. => format!("{value:.1} ms"),
        _ => format!("{value:.2} ms"),
    }
}

/// Requests in a second.
pub fn rate(per_second: f64) -> String {
    format!("{}/s", thousands(per_second))
}

/// Bytes in MiB.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1_024 * 1_024))
}
