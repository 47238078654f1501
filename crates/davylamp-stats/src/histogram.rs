//! Histograms: where their buckets lie, and how those of two versions come to lie in the same ones.
//!
//! Takes the buckets of scraped samples, classic or native, and gives counts on one layout, which is what the
//! tests of distributions read. It looks inside a bucket for [`histogram_quantile`] only, which is for
//! display.
//!
//! **Null hypothesis.** None is tested.
//!
//! **Formula.** Classic layouts have the boundaries in common that both have. Native ones have, at schema
//! `s`, boundaries at `2^(k/2^s)`: each at the coarser schema is one at the finer, so that the coarser is
//! common to both; what lies below the larger zero threshold is one bucket.
//!
//! **Why it is valid.** A bucket is counted in the one bucket of the layout in which it lies entirely; one
//! that lies in two is refused. So counts on a layout are exact, whatever was scraped.
//!
//! **Source.** The data model of Prometheus histograms.
//!
//! **Cost.** A search among the boundaries for each bucket.
//!
//! **When not to use it.** A distribution inside one bucket looks the same wherever in it it lies: with
//! boundaries a factor of two apart, changes of less than that are seen only by what crosses a boundary.

use crate::Error;
use crate::counts::validate_count;
use crate::state::{Reader, Writer};

/// Boundaries that differ by less, relative to themselves, are the same: native ones are computed by others
/// too.
const SAME: f64 = 1e-9;

/// Rounding of the binary logarithm of a boundary, in buckets.
const ROUNDING: f64 = 1e-6;

/// The schemas of native histograms.
const SCHEMAS: std::ops::RangeInclusive<i32> = -4..=8;

/// Native layouts are made coarser until they have no more buckets than this.
const MOST_NATIVE: i32 = 160;

/// One bucket of a sample: what was counted above `lower` and up to `upper`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// The lower bound, minus infinity for the first bucket of a classic histogram.
    pub lower: f64,
    /// The upper bound, infinity for the last bucket of a classic histogram.
    pub upper: f64,
    /// What was counted in this bucket alone.
    pub count: f64,
}

impl Bucket {
    fn validate(&self) -> Result<(), Error> {
        let Self { lower, upper, count } = *self;
        Error::unless(lower < upper, "lower", lower, "a number below the upper bound")?;
        validate_count("count", count)
    }

    /// The schema of native histograms that has buckets as wide as this one.
    fn schema(&self) -> Option<i32> {
        let doublings = libm::log2(self.upper / self.lower);
        SCHEMAS.into_iter().find(|&schema| (libm::ldexp(doublings, schema) - 1.0).abs() < ROUNDING)
    }

    /// It may be one of a native histogram with exponential buckets: between two powers of the same base, or around zero.
    fn is_exponential(&self) -> bool {
        let &Self { lower, upper, .. } = self;
        let aligned = |schema| {
            let index = libm::ldexp(libm::log2(lower), schema);
            (index - index.round()).abs() < ROUNDING
        };
        if lower > 0.0 {
            upper.is_finite() && self.schema().is_some_and(aligned)
        } else {
            lower.is_finite() && (upper < 0.0 || upper.total_cmp(&-lower).is_eq())
        }
    }
}

/// The buckets of a classic histogram whose counts are cumulative, as they are scraped. A count that is lower
/// than one before it, from series that were scraped one after the other, counts as the one before it.
///
/// ```
/// use davylamp_stats::{Bucket, classic_buckets};
///
/// let buckets = classic_buckets(&[0.1, 0.5, f64::INFINITY], &[70.0, 95.0, 96.0])?;
/// assert_eq!(buckets[1], Bucket { lower: 0.1, upper: 0.5, count: 25.0 });
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn classic_buckets(le: &[f64], cumulative: &[f64]) -> Result<Vec<Bucket>, Error> {
    validate_bounds("le", le)?;
    total("cumulative", cumulative, le.len())?;
    let (mut lower, mut below) = (f64::NEG_INFINITY, 0.0);
    let bucket = |(&upper, &up_to): (&f64, &f64)| {
        let bucket = Bucket { lower, upper, count: (up_to - below).max(0.0) };
        (lower, below) = (upper, up_to.max(below));
        bucket
    };
    Ok(le.iter().zip(cumulative).map(bucket).collect())
}

/// What a histogram has counted between two samples on the same layout, bucket by bucket: when any bucket has
/// fallen, all of them were reset to zero in between.
///
/// ```
/// use davylamp_stats::histogram_increment;
///
/// assert_eq!(histogram_increment(&[5.0, 2.0], &[9.0, 2.0])?, [4.0, 0.0]);
/// assert_eq!(histogram_increment(&[5.0, 2.0], &[9.0, 1.0])?, [9.0, 1.0]); // restarted
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn histogram_increment(previous: &[f64], counts: &[f64]) -> Result<Vec<f64>, Error> {
    total("previous", previous, counts.len())?;
    total("counts", counts, counts.len())?;
    let pairs = || previous.iter().zip(counts);
    if pairs().any(|(previous, count)| count < previous) {
        return Ok(counts.to_vec());
    }
    Ok(pairs().map(|(previous, count)| count - previous).collect())
}

/// The value below which the share `phi` of what was counted lies, as Prometheus estimates it: linearly
/// within a bucket, the highest finite bound for the last one. `None` when nothing was counted.
///
/// ```
/// use davylamp_stats::histogram_quantile;
///
/// let p90 = histogram_quantile(0.9, &[0.1, 0.5, f64::INFINITY], &[70.0, 95.0, 100.0])?;
/// assert!((p90.unwrap() - 0.42).abs() < 1e-12);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn histogram_quantile(phi: f64, le: &[f64], cumulative: &[f64]) -> Result<Option<f64>, Error> {
    Error::unless((0.0..=1.0).contains(&phi), "phi", phi, "a share from 0 to 1")?;
    let buckets = classic_buckets(le, cumulative)?;
    let total: f64 = buckets.iter().map(|bucket| bucket.count).sum();
    if total == 0.0 {
        return Ok(None);
    }
    let mut rank = phi * total;
    let mut largest = f64::NEG_INFINITY;
    for Bucket { lower, upper, count } in buckets {
        if upper == f64::INFINITY {
            break;
        }
        largest = upper;
        if rank <= count {
            let lower = if lower == f64::NEG_INFINITY { upper.min(0.0) } else { lower };
            let within = if count > 0.0 { rank / count } else { 0.0 };
            return Ok(Some(lower + (upper - lower) * within));
        }
        rank -= count;
    }
    Ok(Some(largest))
}

/// Where the buckets lie: their upper bounds.
///
/// A test works on one layout. It is the common one of all the samples at its start; the counts of every
/// later sample are put [`on`](Self::on) it. Only a sample that has coarser buckets than the layout cannot
/// be, of a native histogram that has lowered its resolution, say: then the test has to move to the layout
/// that is common to both.
///
/// ```
/// use davylamp_stats::{Layout, classic_buckets};
///
/// // The new version has another set of buckets.
/// let baseline = Layout::classic(&[0.1, 0.25, 0.5, 1.0, f64::INFINITY])?;
/// let canary = Layout::classic(&[0.1, 0.2, 0.5, f64::INFINITY])?;
/// let layout = baseline.common(&canary).unwrap();
/// assert_eq!(layout.bounds(), [0.1, 0.5, f64::INFINITY]);
///
/// let scraped = classic_buckets(&[0.1, 0.25, 0.5, 1.0, f64::INFINITY], &[70.0, 90.0, 95.0, 95.0, 96.0])?;
/// assert_eq!(layout.on(&scraped)?, [70.0, 25.0, 1.0]);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// Ascending; the last one is infinite.
    bounds: Vec<f64>,
    native: Option<Native>,
}

/// What the boundaries of a native layout follow from, besides their number.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Native {
    schema: i32,
    /// The first boundary, as a multiple of `2^-schema` of its binary logarithm.
    first: i32,
    zero_threshold: f64,
}

impl Layout {
    /// The layout of a classic histogram, or of a native one with custom bounds (schema −53): the upper
    /// bounds of all buckets, ascending, infinity the last of at least two.
    pub fn classic(bounds: &[f64]) -> Result<Self, Error> {
        validate_bounds("bounds", bounds)?;
        Ok(Self { bounds: bounds.to_vec(), native: None })
    }

    /// The layout of a native histogram with exponential buckets, from the buckets of a sample that are not
    /// empty: from the lowest to the highest of them, below and above one bucket each. The schema is that of
    /// the buckets; where they have several, the coarsest, and a coarser one when it takes more than 160
    /// buckets. A bucket that contains zero is the zero bucket, negative ones count as below it.
    ///
    /// `None` when no bucket tells the schema, or when they reach beyond 2^1008.
    ///
    /// ```
    /// use davylamp_stats::{Bucket, Layout};
    ///
    /// let sample = [
    ///     Bucket { lower: -1e-9, upper: 1e-9, count: 1.0 },
    ///     Bucket { lower: 0.25, upper: 0.5, count: 12.0 },
    ///     Bucket { lower: 1.0, upper: 2.0, count: 3.0 },
    /// ];
    /// let layout = Layout::native(&sample).unwrap();
    /// assert_eq!(layout.bounds(), [0.25, 0.5, 1.0, 2.0, f64::INFINITY]);
    /// assert_eq!(layout.on(&sample)?, [1.0, 12.0, 0.0, 3.0, 0.0]);
    /// # Ok::<(), davylamp_stats::Error>(())
    /// ```
    #[must_use]
    pub fn native(sample: &[Bucket]) -> Option<Self> {
        let mut coarsest: Option<i32> = None;
        let (mut zero_threshold, mut lowest, mut highest) = (0.0_f64, f64::INFINITY, 0.0_f64);
        for bucket in sample {
            bucket.validate().ok().filter(|()| bucket.upper.is_finite())?;
            if bucket.lower > 0.0 {
                lowest = lowest.min(bucket.lower);
                highest = highest.max(bucket.upper);
                coarsest = [coarsest, bucket.schema()].into_iter().flatten().min();
            } else {
                zero_threshold = zero_threshold.max(bucket.upper);
            }
        }
        Self::exponential(coarsest?, zero_threshold, lowest, highest)
    }

    /// The layout whose buckets hold all these, of one sample or of many: that of [`native`](Self::native), or when one of them
    /// is not exponential the classic one of the bounds that divide none of the buckets. Empty buckets may be missing, as in
    /// a native histogram with custom bounds.
    ///
    /// `None` when there is none.
    ///
    /// ```
    /// use davylamp_stats::{Bucket, Layout, classic_buckets};
    ///
    /// let mut buckets = classic_buckets(&[0.1, 0.25, 0.5, f64::INFINITY], &[70.0, 90.0, 95.0, 96.0])?;
    /// buckets.extend(classic_buckets(&[0.1, 0.2, 0.5, f64::INFINITY], &[50.0, 60.0, 61.0, 61.0])?);
    /// assert_eq!(Layout::of(&buckets).unwrap().bounds(), [0.1, 0.5, f64::INFINITY]);
    ///
    /// let custom = [Bucket { lower: 0.1, upper: 0.25, count: 9.0 }, Bucket { lower: 0.5, upper: 1.0, count: 2.0 }];
    /// assert_eq!(Layout::of(&custom).unwrap().bounds(), [0.1, 0.25, 0.5, 1.0, f64::INFINITY]);
    /// # Ok::<(), davylamp_stats::Error>(())
    /// ```
    #[must_use]
    pub fn of(buckets: &[Bucket]) -> Option<Self> {
        if buckets.iter().all(Bucket::is_exponential) {
            return Self::native(buckets);
        }
        let mut sorted = buckets.to_vec();
        sorted.sort_by(|a, b| a.upper.total_cmp(&b.upper).then(a.lower.total_cmp(&b.lower)));
        sorted.dedup_by(|a, b| a.upper.total_cmp(&b.upper).is_eq() && a.lower.total_cmp(&b.lower).is_eq());
        let divides =
            |bound: f64| sorted.iter().any(|bucket| below(bucket.lower, bound) && below(bound, bucket.upper));
        let bounds = sorted.iter().flat_map(|bucket| [bucket.lower, bucket.upper]);
        let mut bounds: Vec<f64> = bounds.filter(|&bound| bound.is_finite() && !divides(bound)).collect();
        bounds.sort_by(f64::total_cmp);
        bounds.dedup_by(|a, b| !below(*b, *a));
        bounds.push(f64::INFINITY);
        Self::classic(&bounds).ok()
    }

    /// The layout whose buckets both have: of native ones those of the coarser schema, over the range of both,
    /// from the larger zero threshold on; of all others, and when only one of the two is native, the boundaries
    /// in common. Few buckets with custom bounds may look like exponential ones.
    ///
    /// `None` when no finite boundary is common: then the two cohorts cannot be compared.
    #[must_use]
    pub fn common(&self, other: &Self) -> Option<Self> {
        match (&self.native, &other.native) {
            (None, _) | (_, None) => {
                let shared = self.bounds.iter().copied().filter(|&bound| other.has(bound));
                Self::classic(&shared.collect::<Vec<f64>>()).ok()
            }
            (Some(one), Some(two)) => Self::exponential(
                one.schema.min(two.schema),
                one.zero_threshold.max(two.zero_threshold),
                self.lowest().min(other.lowest()),
                self.highest().max(other.highest()),
            ),
        }
    }

    /// The upper bounds of all buckets; the last one is infinite.
    #[must_use]
    pub fn bounds(&self) -> &[f64] {
        &self.bounds
    }

    /// The counts of a sample in the buckets of this layout. An error when one of its buckets lies in two of
    /// them.
    pub fn on(&self, sample: &[Bucket]) -> Result<Vec<f64>, Error> {
        let mut counts = vec![0.0; self.bounds.len()];
        for bucket in sample {
            bucket.validate()?;
            if bucket.count == 0.0 {
                continue;
            }
            let index = self.bounds.partition_point(|&bound| below(bound, bucket.upper));
            let inside = index.checked_sub(1).is_none_or(|i| !below(bucket.lower, self.bounds[i]));
            Error::unless(
                inside,
                "lower",
                bucket.lower,
                "the lower bound of a bucket inside one of the layout",
            )?;
            counts[index] += bucket.count;
        }
        Ok(counts)
    }

    /// Counts on this layout as counts on another one. They are exact where the other one is coarser; where
    /// it is finer they are counted as low as they may lie.
    pub(crate) fn rebin(&self, counts: &[f64], other: &Self) -> Vec<f64> {
        let mut rebinned = vec![0.0; other.bounds.len()];
        let mut index = 0;
        for (bound, count) in self.bounds.iter().zip(counts) {
            rebinned[index] += count;
            index = other.bounds.partition_point(|&other| !below(*bound, other));
        }
        rebinned
    }

    /// 5 bytes, and 16 for a native layout or 8 for each finite bound of a classic one.
    pub(crate) fn write(&self, writer: &mut Writer) {
        let Self { bounds, native } = self;
        let finite = &bounds[..bounds.len() - 1];
        writer.flag(native.is_some());
        writer.integer(u32::try_from(finite.len()).unwrap_or(u32::MAX));
        match native {
            Some(Native { schema, first, zero_threshold }) => {
                writer.integer(schema.cast_unsigned());
                writer.integer(first.cast_unsigned());
                writer.numbers(&[*zero_threshold]);
            }
            None => writer.numbers(finite),
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let native = reader.flag("native")?;
        let finite = reader.integer()?;
        if native {
            let (schema, first) = (reader.integer()?.cast_signed(), reader.integer()?.cast_signed());
            let native = Native { schema, first, zero_threshold: reader.not_negative("zero_threshold")? };
            let layout = native.layout(finite);
            let expected = "as many as a native layout has";
            let refused = || Error::StateField { field: "bounds", value: f64::from(finite), expected };
            return layout.ok_or_else(refused);
        }
        let mut bounds = Vec::new();
        for _ in 0..finite {
            bounds.push(f64::from_le_bytes(reader.take()?));
        }
        bounds.push(f64::INFINITY);
        let expected = "ascending numbers";
        Self::classic(&bounds).map_err(|_| Error::StateField { field: "bounds", value: bounds[0], expected })
    }

    /// From the boundary at or above the lowest value to the one at or above the highest.
    fn exponential(mut schema: i32, zero_threshold: f64, lowest: f64, highest: f64) -> Option<Self> {
        let lowest = lowest.max(zero_threshold);
        let mut first = boundary_above(schema, lowest);
        let mut last = boundary_above(schema, highest.max(lowest));
        while last - first + 2 > MOST_NATIVE {
            schema -= 1;
            first = (first + 1) >> 1;
            last = (last + 1) >> 1;
        }
        Native { schema, first, zero_threshold }.layout((last - first + 1).unsigned_abs())
    }

    fn has(&self, bound: f64) -> bool {
        let index = self.bounds.partition_point(|&own| below(own, bound));
        self.bounds.get(index).is_some_and(|&own| !below(bound, own))
    }

    fn lowest(&self) -> f64 {
        self.bounds[0]
    }

    fn highest(&self) -> f64 {
        self.bounds[self.bounds.len() - 2]
    }
}

impl Native {
    /// `None` when there is no such layout.
    fn layout(self, finite_bounds: u32) -> Option<Layout> {
        let Self { schema, first, zero_threshold: _ } = self;
        let last = first.checked_add(i32::try_from(finite_bounds).ok()?.checked_sub(1)?)?;
        if !SCHEMAS.contains(&schema) || last < first || last.checked_sub(first)? + 2 > MOST_NATIVE {
            return None;
        }
        let mut bounds: Vec<f64> = (first..=last).map(|index| boundary(schema, index)).collect();
        bounds.push(f64::INFINITY);
        Layout::classic(&bounds)
            .ok()
            .filter(|_| bounds[0] > 0.0)
            .map(|layout| Layout { native: Some(self), ..layout })
    }
}

/// The sum of counts, which must be as many as the `buckets` they belong to.
pub(crate) fn total(name: &'static str, counts: &[f64], buckets: usize) -> Result<f64, Error> {
    Error::unless_length(name, counts.len(), buckets)?;
    counts.iter().try_for_each(|&count| validate_count(name, count))?;
    Ok(counts.iter().sum())
}

/// Ascending, finite but for the last one, and at least two.
pub(crate) fn validate_bounds(name: &'static str, bounds: &[f64]) -> Result<(), Error> {
    let last = bounds.last().copied().unwrap_or(f64::NAN);
    Error::unless(last == f64::INFINITY, name, last, "infinity as the last bound")?;
    Error::unless(bounds[0].is_finite(), name, bounds[0], "a finite bound before the infinite one")?;
    let mut pairs = bounds.windows(2);
    pairs.try_for_each(|pair| Error::unless(pair[0] < pair[1], name, pair[1], "ascending bounds"))
}

/// `a` is the lower of the two by more than rounding.
fn below(a: f64, b: f64) -> bool {
    b - a > SAME * a.abs().min(b.abs())
}

/// `2^(index/2^schema)`.
fn boundary(schema: i32, index: i32) -> f64 {
    libm::exp2(libm::ldexp(f64::from(index), -schema))
}

/// The index of the lowest boundary that is finite, above zero and not below `value`, or the highest.
#[expect(clippy::cast_possible_truncation, reason = "a logarithm of at most 1023, times at most 256")]
fn boundary_above(schema: i32, value: f64) -> i32 {
    let index = (libm::ldexp(libm::log2(value), schema) - ROUNDING).ceil();
    let largest = libm::ldexp(1022.0, schema).floor();
    index.clamp(-largest, largest) as i32
}
