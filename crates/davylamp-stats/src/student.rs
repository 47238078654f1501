//! The t distribution with whole degrees of freedom: its upper tail, and the value that cuts a tail off.
//!
//! **Formula.** With `x = ν/(ν + t²)`, half of the incomplete beta function: `P(T ≥ t) = ½·I_x(ν/2, ½)`,
//! `I_x(a, b) = x^a·(1 − x)^b/(a·B(a, b))·Σ_n x^n·Π_{i<n} (a + b + i)/(a + 1 + i)`; near the centre the same
//! series for `1 − I_{1−x}(½, ν/2)`. All terms are positive, so that small tails are exact, too.
//!
//! **Source.** Abramowitz and Stegun (1964), *Handbook of mathematical functions*, 26.5.4 and 26.7.1.
//!
//! **Cost.** Up to about `12·ν` multiplications; sixty times that for a critical value.

/// More degrees of freedom are counted as this many, which is a little on the safe side.
const LARGEST_DEGREES: u32 = 10_000;

/// Below this square of `t` the tail is computed from the centre.
const CENTRE: f64 = 3.0;

/// `P(T ≥ t)` with `degrees` of freedom, at least 1.
pub(crate) fn upper_tail(t: f64, degrees: u32) -> f64 {
    if t < 0.0 {
        return 1.0 - upper_tail(-t, degrees);
    }
    let degrees = f64::from(degrees.clamp(1, LARGEST_DEGREES));
    let a = degrees / 2.0;
    let odds = t * t / degrees;
    let (x, rest) = (1.0 / (1.0 + odds), 1.0 / (1.0 + 1.0 / odds));
    let log_beta = libm::lgamma(a) + libm::lgamma(0.5) - libm::lgamma(a + 0.5);
    let factor = libm::exp(-a * libm::log1p(odds) - log_beta) * rest.sqrt();
    if t * t < CENTRE {
        0.5 - factor * series(a + 0.5, 1.5, rest)
    } else {
        0.5 * factor / a * series(a + 0.5, a + 1.0, x)
    }
}

/// The `t` with `P(T ≥ t) = tail`, for a tail from 1e-100 to ½: the smallest number that is large enough.
pub(crate) fn critical_value(tail: f64, degrees: u32) -> f64 {
    let mut outside = 1.0;
    while upper_tail(outside, degrees) > tail {
        outside *= 2.0;
    }
    let mut inside = 0.0;
    loop {
        let middle = f64::midpoint(inside, outside);
        if middle <= inside || middle >= outside {
            return outside;
        }
        if upper_tail(middle, degrees) > tail {
            inside = middle;
        } else {
            outside = middle;
        }
    }
}

/// `Σ_n z^n·Π_{i<n} (top + i)/(bottom + i)`, for a `z` below 1.
fn series(top: f64, bottom: f64, z: f64) -> f64 {
    let (mut sum, mut term, mut i) = (1.0, 1.0, 0.0);
    while term > sum * 1e-17 {
        term *= (top + i) / (bottom + i) * z;
        sum += term;
        i += 1.0;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With 1, 2 and 4 degrees of freedom the tail is an elementary function.
    #[test]
    fn the_tail_is_the_one_in_closed_form() {
        for t in [0.0, 1e-9, 0.1, 1.0, 1.7, 1.8, 3.0, 12.0, 1e3] {
            let cauchy = libm::atan2(1.0, t) / std::f64::consts::PI;
            assert_close(upper_tail(t, 1), cauchy);
            let root = (2.0 + t * t).sqrt();
            assert_close(upper_tail(t, 2), 1.0 / (root * (root + t)));
            let s = t / (4.0 + t * t).sqrt();
            // ½ − ¾s + ¼s³, as a product that keeps its digits.
            let cosine = 4.0 / (4.0 + t * t) / (1.0 + s);
            assert_close(upper_tail(t, 4), cosine * cosine * (2.0 + s) / 4.0);
            assert_close(upper_tail(-t, 4), 1.0 - upper_tail(t, 4));
        }
    }

    #[test]
    fn a_critical_value_cuts_its_tail_off() {
        for degrees in [1, 2, 7, 60, 100_000] {
            for tail in [0.5, 0.3, 0.05, 1e-3, 1e-9, 1e-100] {
                let critical = critical_value(tail, degrees);
                assert!(critical.is_finite());
                assert_close(upper_tail(critical, degrees), tail);
            }
        }
        // As in every table.
        assert!((critical_value(0.025, 1) - 12.706_204_736).abs() < 1e-8);
        assert!((critical_value(0.05, 10) - 1.812_461_123).abs() < 1e-8);
        assert!((critical_value(0.001, 30) - 3.385_184_867).abs() < 1e-8);
    }

    #[test]
    fn no_input_leads_to_anything_but_a_probability() {
        for t in [0.0, f64::MIN_POSITIVE, 1e-200, 1e160, 1e300, f64::MAX] {
            for degrees in [0, 1, 2, 1000, u32::MAX] {
                for t in [t, -t] {
                    assert!((0.0..=1.0).contains(&upper_tail(t, degrees)), "{t} {degrees}");
                }
            }
        }
    }

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-10 * expected, "{found} instead of {expected}");
    }
}
