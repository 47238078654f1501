//! The quantiles of the normal distribution, with the same bits on every platform.
//!
//! Takes a probability and gives a value; the polynomials and their coefficients are those of algorithm AS
//! 241 (Wichura 1988, *The percentage points of the normal distribution*), exact to sixteen digits.

/// A numerator and a denominator, the constant terms first.
type Fraction = [[f64; 8]; 2];

/// Of `0.180625 − (½ − p)²`, for `p` of at least 0.075.
#[expect(clippy::unreadable_literal, clippy::excessive_precision, reason = "the numbers as they are printed")]
const CENTRE: Fraction = [
    [
        3.3871328727963666080,
        133.14166789178437745,
        1971.5909503065514427,
        13731.693765509461125,
        45921.953931549871457,
        67265.770927008700853,
        33430.575583588128105,
        2509.0809287301226727,
    ],
    [
        1.0,
        42.313330701600911252,
        687.18700749205790830,
        5394.1960214247511077,
        21213.794301586595867,
        39307.895800092710610,
        28729.085735721942674,
        5226.4952788528545610,
    ],
];

/// Of `√(−ln p) − 1.6`, for `√(−ln p)` of at most 5.
#[expect(clippy::unreadable_literal, clippy::excessive_precision, reason = "the numbers as they are printed")]
const TAIL: Fraction = [
    [
        1.42343711074968357734,
        4.63033784615654529590,
        5.76949722146069140550,
        3.64784832476320460504,
        1.27045825245236838258,
        0.241780725177450611770,
        0.0227238449892691845833,
        7.74545014278341407640e-4,
    ],
    [
        1.0,
        2.05319162663775882187,
        1.67638483018380384940,
        0.689767334985100004550,
        0.148103976427480074590,
        0.0151986665636164571966,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ],
];

/// Of `√(−ln p) − 5`, beyond.
#[expect(clippy::unreadable_literal, clippy::excessive_precision, reason = "the numbers as they are printed")]
const FAR_TAIL: Fraction = [
    [
        6.65790464350110377720,
        5.46378491116411436990,
        1.78482653991729133580,
        0.296560571828504891230,
        0.0265321895265761230930,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ],
    [
        1.0,
        0.599832206555887937690,
        0.136929880922735805310,
        0.0148753612908506148525,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ],
];

/// The value that a standard normal variable exceeds with probability `p`, above 0 and up to one half.
pub(crate) fn upper_quantile(p: f64) -> f64 {
    let centre = 0.5 - p;
    if centre <= 0.425 {
        return centre * ratio(&CENTRE, 0.180_625 - centre * centre);
    }
    let root = (-libm::log(p)).sqrt();
    if root <= 5.0 { ratio(&TAIL, root - 1.6) } else { ratio(&FAR_TAIL, root - 5.0) }
}

fn ratio([numerator, denominator]: &Fraction, x: f64) -> f64 {
    let polynomial =
        |terms: &[f64; 8]| terms.iter().rev().fold(0.0, |sum, coefficient| sum * x + coefficient);
    polynomial(numerator) / polynomial(denominator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probability_of_a_quantile_is_the_one_it_was_asked_for() {
        for p in [0.5, 0.4999, 0.3, 0.076, 0.074, 1e-3, 1e-9, 1e-11, 1e-12, 1e-40, 1e-300] {
            let found = 0.5 * libm::erfc(upper_quantile(p) * std::f64::consts::FRAC_1_SQRT_2);
            // The relative error of a probability is the square of the quantile times that of the quantile.
            assert!((found / p - 1.0).abs() < 1e-14 * (1.0 - libm::log(p)), "{p}: {found}");
        }
        assert!(upper_quantile(0.5) == 0.0);
    }
}
