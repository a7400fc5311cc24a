//! Numbers in a readable form.

/// Formats a number with three significant digits and thousands separators.
#[must_use]
pub fn thousands(number: f64) -> String {
    if number < 100.0 {
        return if number < 10.0 { format!("{number:.1}") } else { format!("{number:.0}") };
    }
    let unit = 10_f64.powf(number.log10().floor() - 2.0);
    let digits = format!("{:.0}", (number / unit).round() * unit);
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats microseconds in a suitable unit.
#[must_use]
pub fn micros(micros: f64) -> String {
    match micros {
        micros if micros >= 1e6 => format!("{:.2} s", micros / 1e6),
        micros if micros >= 1e4 => format!("{:.0} ms", micros / 1e3),
        micros if micros >= 1e3 => format!("{:.1} ms", micros / 1e3),
        micros if micros >= 10.0 => format!("{micros:.0} µs"),
        micros => format!("{micros:.1} µs"),
    }
}

/// Formats bytes in millions.
#[must_use]
pub fn megabytes(bytes: f64) -> String {
    format!("{} MB", thousands(bytes / 1e6))
}

#[cfg(test)]
mod tests {
    use super::{megabytes, micros, thousands};

    /// Numbers are printed with three significant digits, thousands separators and a suitable unit.
    #[test]
    fn numbers_have_readable_digits_and_units() {
        assert_eq!(thousands(2.04), "2.0");
        assert_eq!(thousands(42.3), "42");
        assert_eq!(thousands(999.0), "999");
        assert_eq!(thousands(152_345.0), "152,000");
        assert_eq!(micros(4.26), "4.3 µs");
        assert_eq!(micros(56.2), "56 µs");
        assert_eq!(micros(5_900.0), "5.9 ms");
        assert_eq!(megabytes(12.3e6), "12 MB");
    }
}
