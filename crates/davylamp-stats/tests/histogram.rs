//! Layouts, samples on them, quantiles and tails: what must hold for any histogram.

use davylamp_stats::{
    Bucket, Layout, classic_buckets, counts_above, histogram_increment, histogram_quantile, limit_boundary,
    slower_tail, tail_boundary,
};
use proptest::prelude::*;

// Classic layouts.

#[test]
fn classic_layouts_have_their_boundaries_in_common() {
    let layout = |bounds: &[f64]| Layout::classic(&[bounds, &[f64::INFINITY]].concat()).unwrap();
    let (old, new) = (layout(&[0.1, 0.25, 0.5, 1.0]), layout(&[0.05, 0.1, 0.3, 0.5]));
    let common = old.common(&new).unwrap();
    assert_eq!(common, layout(&[0.1, 0.5]));
    assert_eq!(new.common(&old).unwrap(), common);
    assert_eq!(old.common(&old).unwrap(), old);
    assert_eq!(old.common(&layout(&[0.2, 0.3])), None);

    let scraped =
        classic_buckets(&[0.05, 0.1, 0.3, 0.5, f64::INFINITY], &[1.0, 3.0, 6.0, 10.0, 15.0]).unwrap();
    assert_eq!(common.on(&scraped).unwrap(), [3.0, 7.0, 5.0]);
    // A boundary of the old layout lies inside a bucket of the new one.
    let error = old.on(&scraped).unwrap_err().to_string();
    assert_eq!(error, "lower is 0.1, expected the lower bound of a bucket inside one of the layout");
    // An empty one may lie anywhere.
    let empty = Bucket { lower: 0.1, upper: 0.3, count: 0.0 };
    assert_eq!(old.on(&[empty, scraped[1]]).unwrap(), [2.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn cumulative_counts_that_fall_are_taken_as_the_largest_before() {
    let buckets = classic_buckets(&[0.1, 0.2, f64::INFINITY], &[5.0, 4.0, 7.0]).unwrap();
    assert_eq!(buckets.iter().map(|bucket| bucket.count).collect::<Vec<_>>(), [5.0, 0.0, 2.0]);
    let error = classic_buckets(&[0.1, f64::NAN, f64::INFINITY], &[5.0; 3]).unwrap_err().to_string();
    assert_eq!(error, "le is NaN, expected ascending bounds");
    let error = classic_buckets(&[0.1, 0.2], &[5.0; 2]).unwrap_err().to_string();
    assert_eq!(error, "le is 0.2, expected infinity as the last bound");
    let error = classic_buckets(&[0.1, f64::INFINITY], &[5.0]).unwrap_err().to_string();
    assert_eq!(error, "cumulative has 1 entries, expected 2");
}

// Native layouts.

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// `2^k` buckets of the finer schema are one of the coarser.
    #[test]
    fn native_layouts_meet_at_the_coarser_schema(
        (fine, coarser) in (1_i32..6, 1_i32..4),
        (first, counts) in (-30_i32..30, prop::collection::vec(1_u32..9, 1..30)),
        other in -10_i32..10,
    ) {
        let sample = native(fine, first, &counts);
        let coarse = native(fine - coarser, other, &[1]);
        let (one, two) = (Layout::native(&sample).unwrap(), Layout::native(&coarse).unwrap());
        let common = one.common(&two).unwrap();
        prop_assert_eq!(&two.common(&one).unwrap(), &common);
        prop_assert_eq!(&common.common(&one).unwrap(), &common);
        prop_assert!(common.on(&coarse).is_ok());
        let found = common.on(&sample).unwrap();
        let mut expected = vec![0.0; found.len()];
        let upper = common.bounds();
        for (index, count) in (first..).zip(&counts) {
            // The bucket at `index` of the fine schema is in this one of the coarse schema.
            let index = (index + (1 << coarser) - 1) >> coarser;
            let bound = boundary(fine - coarser, index);
            let bucket = upper.iter().position(|upper| *upper > bound * 0.999_999).unwrap();
            expected[bucket] += f64::from(*count);
        }
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn no_native_layout_has_more_than_160_buckets(
        schema in -4_i32..9,
        (lowest, highest) in (-1000_i32..1000, -1000_i32..1000),
        zero_threshold in prop::option::of(1e-300..1e300),
    ) {
        let index = |doublings: i32| if schema < 0 { doublings >> -schema } else { doublings << schema };
        let mut sample = native(schema, index(lowest), &[1]);
        sample.extend(native(schema, index(highest), &[1]));
        sample.extend(zero_threshold.map(|upper: f64| Bucket { lower: -upper, upper, count: 2.0 }));
        let layout = Layout::native(&sample).unwrap();
        prop_assert!((2..=160).contains(&layout.bounds().len()), "{}", layout.bounds().len());
        prop_assert_eq!(layout.common(&layout), Some(layout.clone()));
        let on = layout.on(&sample).unwrap();
        let total: f64 = sample.iter().map(|bucket| bucket.count).sum();
        prop_assert!((on.iter().sum::<f64>() - total).abs() < 1e-9);
    }

    #[test]
    fn any_sample_gives_a_layout_or_none(
        sample in prop::collection::vec((any::<f64>(), any::<f64>(), any::<f64>()), 0..6),
    ) {
        let bucket = |(lower, upper, count)| Bucket { lower, upper, count };
        let sample: Vec<Bucket> = sample.into_iter().map(bucket).collect();
        let other = Layout::native(&native(3, -20, &[1, 2, 3])).unwrap();
        if let Some(layout) = Layout::native(&sample) {
            prop_assert!(layout.common(&other).is_some());
        }
        let _ = other.on(&sample);
    }
}

#[test]
fn boundaries_computed_elsewhere_may_differ_in_the_last_digit() {
    let sample = native(3, -10, &[1, 2, 3, 4, 5]);
    let layout = Layout::native(&sample).unwrap();
    for factor in [1.0 - 4.0 * f64::EPSILON, 1.0 + 4.0 * f64::EPSILON] {
        let bucket = |b: &Bucket| Bucket { lower: b.lower * factor, upper: b.upper * factor, count: b.count };
        let other: Vec<Bucket> = sample.iter().map(bucket).collect();
        assert_eq!(layout.on(&other), layout.on(&sample));
        assert_eq!(Layout::native(&other), Some(layout.clone()));
    }
}

#[test]
fn the_larger_zero_threshold_takes_the_buckets_below_it() {
    let zero = |upper: f64| Bucket { lower: -upper, upper, count: 3.0 };
    let fine = [vec![zero(1e-9)], native(0, -6, &[1, 1, 1, 1, 1])].concat();
    // The lowest bucket is cut off by the threshold, which is no boundary.
    let cut = Bucket { lower: 0.1, upper: 0.125, count: 7.0 };
    let wide = [vec![zero(0.1), cut], native(0, -2, &[2, 2])].concat();
    let common = Layout::native(&fine).unwrap().common(&Layout::native(&wide).unwrap()).unwrap();
    assert_eq!(common.bounds(), [0.125, 0.25, 0.5, f64::INFINITY]);
    assert_eq!(common.on(&fine).unwrap(), [3.0 + 4.0, 1.0, 0.0, 0.0]);
    assert_eq!(common.on(&wide).unwrap(), [10.0, 2.0, 2.0, 0.0]);
    // So are negative values; what is later found outside goes to the buckets at the ends.
    let later = [
        Bucket { lower: -4.0, upper: -2.0, count: 1.0 },
        Bucket { lower: 0.001, upper: 0.002, count: 2.0 },
        Bucket { lower: 8.0, upper: 16.0, count: 4.0 },
    ];
    assert_eq!(common.on(&later).unwrap(), [3.0, 0.0, 0.0, 4.0]);
}

#[test]
fn without_a_bucket_that_tells_the_schema_there_is_no_native_layout() {
    assert_eq!(Layout::native(&[]), None);
    assert_eq!(Layout::native(&[Bucket { lower: -1e-9, upper: 1e-9, count: 5.0 }]), None);
    assert_eq!(Layout::native(&[Bucket { lower: 0.1, upper: 0.7, count: 5.0 }]), None);
    assert_eq!(Layout::native(&[Bucket { lower: 0.1, upper: f64::INFINITY, count: 5.0 }]), None);
}

#[test]
fn a_native_layout_and_a_classic_one_have_the_boundaries_in_common() {
    let native = Layout::native(&native(0, -1, &[1, 1])).unwrap();
    let classic = |bounds: &[f64]| Layout::classic(&[bounds, &[f64::INFINITY]].concat()).unwrap();
    let own = classic(&[0.1, 0.5, 1.0, 2.5]);
    let both = Some(classic(&[0.5, 1.0]));
    assert_eq!((own.common(&native), native.common(&own)), (both.clone(), both));
    assert_eq!(classic(&[0.1, 2.5]).common(&native), None);
}

/// A native histogram with custom bounds shows its buckets without the empty ones.
#[test]
fn custom_bounds_are_found_without_the_empty_buckets() {
    let bucket = |lower: f64, upper: f64| Bucket { lower, upper, count: 3.0 };
    let bounds = |buckets: &[Bucket]| Layout::of(buckets).map(|layout| layout.bounds().to_vec());
    let all = [0.0, 5.0, 10.0, 25.0, 50.0, f64::INFINITY];
    let found = [bucket(0.0, 5.0), bucket(10.0, 25.0), bucket(25.0, 50.0)];
    assert_eq!(bounds(&found), Some(all.to_vec()));
    assert_eq!(Layout::of(&found).unwrap().on(&found).unwrap(), [0.0, 3.0, 0.0, 3.0, 3.0, 0.0]);
    let ends = [bucket(f64::NEG_INFINITY, 0.1), bucket(2.5, f64::INFINITY)];
    assert_eq!(bounds(&ends), Some(vec![0.1, 2.5, f64::INFINITY]));
    // Twice as wide as high, but not between powers of two.
    assert_eq!(bounds(&[bucket(5.0, 10.0)]), Some(vec![5.0, 10.0, f64::INFINITY]));
    // These are exponential, whatever is missing.
    let gaps = [native(2, -9, &[1]), native(2, 3, &[1]), vec![bucket(-1e-9, 1e-9)]].concat();
    assert_eq!(Layout::of(&gaps), Layout::native(&gaps));
}

// Counts, quantiles and tails.

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_quantile_lies_in_its_bucket(
        counts in prop::collection::vec(0_u32..50, 5),
        (phi, more) in (0.0..1.0, 0.0..1.0),
    ) {
        let le = [-1.0, 0.0, 0.5, 2.0, f64::INFINITY];
        let mut sum = 0.0;
        let cumulative: Vec<f64> = counts.iter().map(|&count| { sum += f64::from(count); sum }).collect();
        let quantile = |phi: f64| histogram_quantile(phi, &le, &cumulative).unwrap();
        prop_assert_eq!(quantile(phi).is_none(), sum == 0.0);
        let Some(found) = quantile(phi) else { return Ok(()) };
        prop_assert!((-1.0..=2.0).contains(&found));
        prop_assert!(quantile(phi + more * (1.0 - phi)).unwrap() >= found - 1e-12);
        let bucket = le.iter().position(|bound| found <= *bound).unwrap();
        prop_assert!(cumulative[bucket] >= phi * sum - 1e-9 || found >= 2.0);
    }

    #[test]
    fn any_numbers_give_a_quantile_or_an_error(
        phi in prop_oneof![0.0..1.0, any::<f64>()],
        values in prop::collection::vec((any::<f64>(), prop_oneof![0.0..1e15, any::<f64>()]), 0..5),
    ) {
        let (mut le, cumulative): (Vec<f64>, Vec<f64>) = values.into_iter().unzip();
        le.sort_by(f64::total_cmp);
        if let Some(last) = le.last_mut() {
            *last = f64::INFINITY;
        }
        if let Ok(Some(quantile)) = histogram_quantile(phi, &le, &cumulative) {
            prop_assert!(quantile.is_finite());
        }
        let _ = limit_boundary(&le, phi);
        for counts in [&le, &cumulative] {
            let _ = (tail_boundary(counts), slower_tail(counts, &cumulative), counts_above(1, counts, counts));
            let _ = histogram_increment(counts, &cumulative);
        }
    }

    #[test]
    fn the_tail_above_its_boundary_is_the_largest_of_at_most_a_tenth(
        pooled in prop::collection::vec(0_u32..100, 1..12),
    ) {
        let pooled: Vec<f64> = pooled.into_iter().map(f64::from).collect();
        let all: f64 = pooled.iter().sum();
        let above = |boundary: usize| counts_above(boundary, &pooled, &pooled).unwrap().x_canary;
        let finite = pooled.len() - 1;
        let expected = (0..finite).find(|&boundary| above(boundary) <= 0.1 * all).filter(|_| all > 0.0);
        prop_assert_eq!(tail_boundary(&pooled).unwrap(), expected);
    }

    #[test]
    fn the_slower_tail_is_where_a_request_has_moved(
        baseline in prop::collection::vec(50_u32..500, 5),
        boundary in 0_usize..4,
    ) {
        let baseline: Vec<f64> = baseline.into_iter().map(|count| 100.0 * f64::from(count)).collect();
        prop_assert_eq!(slower_tail(&baseline, &baseline).unwrap(), None);
        let mut canary = baseline.clone();
        canary[boundary + 1] += canary[boundary];
        canary[boundary] = 0.0;
        let tail = slower_tail(&canary, &baseline).unwrap().unwrap();
        prop_assert_eq!(tail.boundary, boundary);
        let all: f64 = baseline.iter().sum();
        let up_to: f64 = baseline[..=boundary].iter().sum();
        prop_assert!((tail.quantile - up_to / all).abs() < 1e-12);
        prop_assert!(tail.canary > 1.0 - tail.quantile);
        // Faster is not slower.
        prop_assert_eq!(slower_tail(&baseline, &canary).unwrap(), None);
    }
}

#[test]
fn a_quantile_of_nothing_is_none() {
    let le = [0.1, f64::INFINITY];
    assert_eq!(histogram_quantile(0.5, &le, &[0.0, 0.0]), Ok(None));
    assert_eq!(histogram_quantile(0.5, &le, &[0.0, 9.0]), Ok(Some(0.1)));
    assert_eq!(histogram_quantile(0.0, &le, &[0.0, 9.0]), Ok(Some(0.0)));
    let error = histogram_quantile(1.01, &le, &[0.0, 9.0]).unwrap_err().to_string();
    assert_eq!(error, "phi is 1.01, expected a share from 0 to 1");
}

/// Buckets at `2^(index/2^schema)`, from `first` on.
fn native(schema: i32, first: i32, counts: &[u32]) -> Vec<Bucket> {
    let bucket = |(index, &count): (i32, &u32)| Bucket {
        lower: boundary(schema, index - 1),
        upper: boundary(schema, index),
        count: f64::from(count),
    };
    (first..).zip(counts).map(bucket).collect()
}

fn boundary(schema: i32, index: i32) -> f64 {
    libm::exp2(f64::from(index) / libm::exp2(f64::from(schema)))
}
