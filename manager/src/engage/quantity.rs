//! Kubernetes' quantities: `500m`, `1.5Gi`, `2e3`
//! (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>).

/// A quantity in thousand-millionths, the finest that Kubernetes knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quantity(i128);

const NANO: i128 = 1_000_000_000;

impl Quantity {
    /// One.
    pub(crate) const ONE: Self = Self(NANO);

    /// Reads a quantity; `None` for what is none, and for what is beyond all use.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c)).unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
        let (factor, exponent) = suffix_of(suffix)?;
        let exponent = exponent + 9 - i32::try_from(fraction.len()).ok()?;
        let scaled = digits.checked_mul(factor)?;
        let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
        Some(Self(if exponent < 0 { scaled / power } else { scaled.checked_mul(power)? }))
    }

    /// How often it holds `divisor`, rounded up; `None` for a divisor that is not positive.
    pub(crate) fn divided_by(self, divisor: Self) -> Option<i128> {
        let Self(divisor) = divisor;
        (divisor > 0).then(|| self.0.div_euclid(divisor) + i128::from(self.0.rem_euclid(divisor) > 0))
    }

    /// In thousandths, rounded up; 0 when it is negative.
    pub(crate) fn millis(self) -> u64 {
        self.divided_by(Self(NANO / 1000)).and_then(|millis| millis.try_into().ok()).unwrap_or_default()
    }

    /// In whole units, rounded up; 0 when it is negative.
    pub(crate) fn units(self) -> u64 {
        self.divided_by(Self::ONE).and_then(|units| units.try_into().ok()).unwrap_or_default()
    }
}

/// A suffix as a factor, and a power of ten beside it.
fn suffix_of(suffix: &str) -> Option<(i128, i32)> {
    Some(match suffix {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        _ => (1, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, nano) in [
            ("1", NANO),
            ("500m", NANO / 2),
            ("0.5", NANO / 2),
            (".5", NANO / 2),
            ("1.5Gi", 3 * (1 << 29) * NANO),
            ("128Mi", (128 << 20) * NANO),
            ("2k", 2_000 * NANO),
            ("2e3", 2_000 * NANO),
            ("2E3", 2_000 * NANO),
            ("2E", 2_000_000_000_000_000_000 * NANO),
            ("12e-2", NANO * 12 / 100),
            ("100n", 100),
            ("-1", -NANO),
        ] {
            assert_eq!(Quantity::parse(text), Some(Quantity(nano)), "{text}");
        }
        for text in ["", "m", "1x", "1.2.3", "one", "1ki", "1e", "9e99"] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
    }

    #[test]
    fn division_rounds_up() {
        let of = |quantity: &str, divisor: &str| {
            Quantity::parse(quantity).unwrap().divided_by(Quantity::parse(divisor).unwrap())
        };
        assert_eq!(of("250m", "1"), Some(1));
        assert_eq!(of("250m", "1m"), Some(250));
        assert_eq!(of("1Gi", "1Mi"), Some(1024));
        assert_eq!(of("1", "0"), None);
        assert_eq!(Quantity::parse("1500m").unwrap().units(), 2);
        assert_eq!(Quantity::parse("1.5").unwrap().millis(), 1500);
        assert_eq!(Quantity::parse("-5").unwrap().units(), 0);
    }
}
