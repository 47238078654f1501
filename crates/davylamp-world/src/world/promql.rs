//! What the simulated Prometheus answers: range selectors, and subqueries and instant vectors of `sum`, `max`, `timestamp`,
//! `rate`, `increase`, `vector`, `or` and arithmetic. It knows no extrapolation: `rate` is that between the samples.
//!
//! A subquery is evaluated at whole multiples of its step, and sees what was scraped in the five minutes before, as Prometheus
//! does.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use promql_parser::parser::token::{T_ADD, T_DIV, T_LOR, T_MAX, T_MUL, T_SUB, T_SUM, TokenType};
use promql_parser::parser::{
    self, BinaryExpr, Expr, LabelModifier, MatrixSelector, SubqueryExpr, VectorSelector,
};

use super::{Bucket, NativeHistogram, Series};
use crate::memo::Memo;

/// For so long a sample is the newest one of its series, ms.
const LOOKBACK: i64 = 300_000;

static PARSED: Memo<Arc<Expr>> = Memo::new();

/// The series of a selector, with their samples after one time and up to another.
type Select<'a> = &'a dyn Fn(&VectorSelector, RangeInclusive<i64>) -> Vec<Series>;
type Labels = BTreeMap<String, String>;
/// For each moment, the newest sample.
type Cells = Vec<Option<(i64, Value)>>;

type Join = fn(Value, Value) -> Option<Value>;

#[derive(Clone)]
enum Value {
    Number(f64),
    Histogram(NativeHistogram),
}

/// What a Prometheus with these series answers at a time, in ms since 1970; what cannot be answered is the error. A sample that is
/// not a number says that the series was not seen at this scrape, as a stale marker does: ranges leave it out, and there is no
/// newest sample from then on.
pub fn query(series: &[Series], promql: &str, at_ms: i64) -> Result<Vec<Series>, String> {
    let select = |selector: &VectorSelector, times: RangeInclusive<i64>| {
        let is_meant = |one: &&Series| {
            let label = |name: &str| one.labels.get(name).map_or("", String::as_str);
            let name = selector.name.as_deref().is_none_or(|name| name == label("__name__"));
            name && selector.matchers.matchers.iter().all(|matcher| matcher.is_match(label(&matcher.name)))
        };
        let found = series.iter().filter(is_meant).map(|one| {
            let samples = one.samples.iter().filter(|(at, _)| times.contains(at)).copied().collect();
            Series { labels: one.labels.clone(), samples, ..Series::default() }
        });
        found.filter(|one| !one.samples.is_empty()).collect()
    };
    let mut answer = answer(promql, at_ms, &select)?;
    for one in &mut answer {
        one.samples.retain(|(_, value)| !value.is_nan());
    }
    answer.retain(|one| !one.samples.is_empty());
    Ok(answer)
}

/// The answer at a time, in ms. What cannot be answered is the error.
#[allow(clippy::wildcard_enum_match_arm, reason = "whatever else there is, it is refused")]
pub(super) fn answer(promql: &str, at: i64, select: Select<'_>) -> Result<Vec<Series>, String> {
    match &*PARSED.get(promql, || parser::parse(promql).map(Arc::new))? {
        Expr::MatrixSelector(selector) => Ok(select(&selector.vs, after(at, selector.range)..=at)),
        Expr::Subquery(subquery) => subquery_at(subquery, at, select),
        other => Ok(series(evaluate(other, &[at], select)?, &[at])),
    }
}

fn unknown(expr: &Expr) -> String {
    format!("not answered here: {}", expr.prettify())
}

/// The first ms of the range.
fn after(at: i64, range: Duration) -> i64 {
    at.saturating_sub(milliseconds(range)).saturating_add(1)
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn subquery_at(subquery: &SubqueryExpr, at: i64, select: Select<'_>) -> Result<Vec<Series>, String> {
    let step = subquery.step.map_or(0, milliseconds);
    let first = after(at, subquery.range);
    if step <= 0 || at.saturating_sub(first) / step > 11_000 {
        return Err("a subquery needs a step, and has at most 11,000 of them".to_owned());
    }
    let moments: Vec<i64> = (first.div_euclid(step)..=at.div_euclid(step))
        .map(|n| n * step)
        .filter(|moment| (first..=at).contains(moment))
        .collect();
    Ok(series(evaluate(&subquery.expr, &moments, select)?, &moments))
}

fn series(vector: BTreeMap<Labels, Cells>, moments: &[i64]) -> Vec<Series> {
    let series = vector.into_iter().map(|(labels, cells)| {
        let mut series = Series { labels, ..Series::default() };
        for (&moment, cell) in moments.iter().zip(cells) {
            match cell {
                Some((_, Value::Number(number))) => series.samples.push((moment, number)),
                Some((_, Value::Histogram(histogram))) => series.histograms.push((moment, histogram)),
                None => {}
            }
        }
        series
    });
    series.filter(|one| !one.samples.is_empty() || !one.histograms.is_empty()).collect()
}

#[allow(clippy::wildcard_enum_match_arm, reason = "whatever else there is, it is refused")]
fn evaluate(expr: &Expr, moments: &[i64], select: Select<'_>) -> Result<BTreeMap<Labels, Cells>, String> {
    match expr {
        Expr::Paren(paren) => evaluate(&paren.expr, moments, select),
        Expr::VectorSelector(selector) => Ok(newest(selector, moments, select)),
        Expr::Call(call) if call.func.name == "timestamp" => {
            let [argument] = call.args.args.as_slice() else {
                return Err("timestamp of one thing".to_owned());
            };
            let mut times = BTreeMap::new();
            for (mut labels, mut cells) in evaluate(argument, moments, select)? {
                labels.remove("__name__");
                for (at, value) in cells.iter_mut().flatten() {
                    #[allow(clippy::cast_precision_loss, reason = "a time in ms")]
                    let seconds = *at as f64 / 1_000.0;
                    *value = Value::Number(seconds);
                }
                times.insert(labels, cells);
            }
            Ok(times)
        }
        Expr::Call(call) if ["rate", "increase"].contains(&call.func.name) => {
            let [argument] = call.args.args.as_slice() else { return Err("a rate of one thing".to_owned()) };
            let Expr::MatrixSelector(range) = &**argument else { return Err(unknown(argument)) };
            Ok(rates(range, call.func.name == "increase", moments, select))
        }
        Expr::Call(call) if call.func.name == "vector" => {
            let [argument] = call.args.args.as_slice() else { return Err("vector of one thing".to_owned()) };
            let number = number(argument).ok_or_else(|| unknown(argument))?;
            let cells = moments.iter().map(|moment| Some((*moment, Value::Number(number))));
            Ok(BTreeMap::from([(Labels::new(), cells.collect())]))
        }
        Expr::Binary(binary) if binary.op.id() == T_LOR => {
            let mut both = evaluate(&binary.lhs, moments, select)?;
            for (labels, cells) in evaluate(&binary.rhs, moments, select)? {
                let left = both.entry(labels).or_insert_with(|| vec![None; moments.len()]);
                for (left, right) in left.iter_mut().zip(cells) {
                    *left = left.take().or(right);
                }
            }
            Ok(both)
        }
        Expr::Aggregate(aggregate) => {
            let by: &[String] = match &aggregate.modifier {
                Some(LabelModifier::Include(by)) => by.labels.as_slice(),
                None => &[],
                Some(LabelModifier::Exclude(_)) => return Err("without is not answered here".to_owned()),
            };
            let join = join(aggregate.op)?;
            let mut groups: BTreeMap<Labels, Cells> = BTreeMap::new();
            for (mut labels, cells) in evaluate(&aggregate.expr, moments, select)? {
                labels.retain(|name, _| by.contains(name));
                let group = groups.entry(labels).or_insert_with(|| vec![None; moments.len()]);
                for (cell, one) in group.iter_mut().zip(cells) {
                    *cell = match (cell.take(), one) {
                        (Some((at, a)), Some((_, b))) => join(a, b).map(|value| (at, value)),
                        (a, b) => a.or(b),
                    };
                }
            }
            Ok(groups)
        }
        Expr::Binary(binary) => arithmetic(binary, moments, select),
        other => Err(unknown(other)),
    }
}

fn arithmetic(
    binary: &BinaryExpr,
    moments: &[i64],
    select: Select<'_>,
) -> Result<BTreeMap<Labels, Cells>, String> {
    let apply: fn(f64, f64) -> f64 = match binary.op.id() {
        T_ADD => |a, b| a + b,
        T_SUB => |a, b| a - b,
        T_MUL => |a, b| a * b,
        T_DIV => |a, b| a / b,
        _ => return Err(format!("the operator {} is not answered here", binary.op)),
    };
    let side = |expr: &Expr| match number(expr) {
        Some(number) => Ok((Some(number), BTreeMap::new())),
        None => Ok::<_, String>((None, unnamed(evaluate(expr, moments, select)?))),
    };
    let ((left, mut lefts), (right, rights)) = (side(&binary.lhs)?, side(&binary.rhs)?);
    let join = |a: Option<(i64, Value)>, b: Option<(i64, Value)>| match (a?, b?) {
        ((at, Value::Number(a)), (_, Value::Number(b))) => Some((at, Value::Number(apply(a, b)))),
        _ => None,
    };
    let same = |number: f64| moments.iter().map(|at| Some((*at, Value::Number(number)))).collect::<Cells>();
    let joined = |a: Cells, b: Cells| a.into_iter().zip(b).map(|(a, b)| join(a, b)).collect::<Cells>();
    Ok(match (left, right) {
        (Some(left), Some(right)) => BTreeMap::from([(Labels::new(), joined(same(left), same(right)))]),
        (Some(left), None) => rights.into_iter().map(|(labels, b)| (labels, joined(same(left), b))).collect(),
        (None, Some(right)) => {
            lefts.into_iter().map(|(labels, a)| (labels, joined(a, same(right)))).collect()
        }
        (None, None) => {
            let both = rights.into_iter().filter_map(|(labels, b)| {
                let a = lefts.remove(&labels)?;
                Some((labels, joined(a, b)))
            });
            both.collect()
        }
    })
}

#[allow(clippy::wildcard_enum_match_arm, reason = "all else is no number")]
fn number(expr: &Expr) -> Option<f64> {
    match expr {
        Expr::NumberLiteral(literal) => Some(literal.val),
        Expr::Paren(paren) => number(&paren.expr),
        _ => None,
    }
}

fn unnamed(vector: BTreeMap<Labels, Cells>) -> BTreeMap<Labels, Cells> {
    let unnamed = vector.into_iter().map(|(mut labels, cells)| {
        labels.remove("__name__");
        (labels, cells)
    });
    unnamed.collect()
}

/// By how much counters grew within the range, for each second of it or in all.
fn rates(
    range: &MatrixSelector,
    in_all: bool,
    moments: &[i64],
    select: Select<'_>,
) -> BTreeMap<Labels, Cells> {
    let length = milliseconds(range.range);
    let (Some(first), Some(&last)) = (moments.first(), moments.last()) else { return BTreeMap::new() };
    let series = select(&range.vs, first.saturating_sub(length).saturating_add(1)..=last);
    let cells = series.into_iter().map(|mut one| {
        one.labels.remove("__name__");
        let rate = |moment: &i64| {
            let within: Vec<_> =
                one.samples.iter().filter(|(at, _)| (moment - length + 1..=*moment).contains(at)).collect();
            let ((from, _), (to, _)) = (within.first()?, within.last()?);
            let grown =
                |pair: &[&(i64, f64)]| if pair[1].1 >= pair[0].1 { pair[1].1 - pair[0].1 } else { pair[1].1 };
            let sum: f64 = within.windows(2).map(grown).sum();
            #[allow(clippy::cast_precision_loss, reason = "times in ms")]
            let (seconds, range) = ((to - from) as f64 / 1_000.0, length as f64 / 1_000.0);
            let rate = sum / seconds * if in_all { range } else { 1.0 };
            (to > from).then_some((*moment, Value::Number(rate)))
        };
        (one.labels.clone(), moments.iter().map(rate).collect())
    });
    cells.collect()
}

fn newest(selector: &VectorSelector, moments: &[i64], select: Select<'_>) -> BTreeMap<Labels, Cells> {
    let (Some(first), Some(&last)) = (moments.first(), moments.last()) else { return BTreeMap::new() };
    let series = select(selector, first.saturating_sub(LOOKBACK).saturating_add(1)..=last);
    let cells = series.into_iter().map(|one| {
        let numbers = one.samples.into_iter().map(|(at, number)| (at, Value::Number(number)));
        let histograms = one.histograms.into_iter().map(|(at, histogram)| (at, Value::Histogram(histogram)));
        let samples: Vec<(i64, Value)> = numbers.chain(histograms).collect();
        let cells = moments.iter().map(|moment| {
            let before = samples.partition_point(|(at, _)| at <= moment);
            let newest = before.checked_sub(1).and_then(|index| samples.get(index))?;
            let is_stale = matches!(newest.1, Value::Number(number) if number.is_nan());
            (newest.0 > moment - LOOKBACK && !is_stale).then(|| newest.clone())
        });
        (one.labels, cells.collect())
    });
    cells.collect()
}

/// How two values of a group become one.
fn join(op: TokenType) -> Result<Join, String> {
    match op.id() {
        T_SUM => Ok(|a, b| match (a, b) {
            (Value::Number(a), Value::Number(b)) => Some(Value::Number(a + b)),
            (Value::Histogram(a), Value::Histogram(b)) => Some(Value::Histogram(sum(a, b))),
            _ => None,
        }),
        T_MAX => Ok(|a, b| match (a, b) {
            (Value::Number(a), Value::Number(b)) => Some(Value::Number(a.max(b))),
            _ => None,
        }),
        _ => Err("only sum and max are answered here".to_owned()),
    }
}

/// Of the same schema.
fn sum(a: NativeHistogram, b: NativeHistogram) -> NativeHistogram {
    let mut buckets: Vec<Bucket> = a.buckets;
    for bucket in b.buckets {
        match buckets.binary_search_by(|own| own.upper.total_cmp(&bucket.upper)) {
            Ok(index) => {
                if let Some(own) = buckets.get_mut(index) {
                    own.count += bucket.count;
                }
            }
            Err(index) => buckets.insert(index, bucket),
        }
    }
    NativeHistogram { count: a.count + b.count, sum: a.sum + b.sum, buckets }
}
