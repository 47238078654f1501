//! Native histograms with exponential buckets, as a program exposes them: what is read of a real Prometheus are the buckets
//! that the script says, also when their schema changes or the program begins anew.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use davylamp_engine::MetricQuery;
use davylamp_engine::observed::Bucket;
use serde_json::json;

use super::scripted::{Target, read};
use super::shared::world;

const PROTOBUF: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// Values this near to zero are in one bucket.
const ZERO: f64 = 0.125;

/// What a target has counted: the schema, how many values are about zero, and the buckets that have any, by index.
type Answer = Option<(i32, u32, &'static [(i32, u32)])>;
/// What is counted between two scrapes: how many about zero, and the buckets of that schema.
type Grown = (i32, u32, &'static [(i32, u32)]);

/// Its buckets become finer in the fourth scrape, and it begins anew in the seventh, after one that fails.
const CANARY: &[Answer] = &[
    Some((0, 1, &[(0, 5), (1, 5)])),
    Some((0, 1, &[(0, 7), (1, 9), (4, 1)])),
    Some((0, 3, &[(-2, 1), (0, 7), (1, 9), (4, 1)])),
    Some((1, 3, &[(-4, 2), (0, 9), (1, 5), (2, 9), (8, 1)])),
    Some((1, 3, &[(-4, 2), (0, 10), (1, 5), (2, 9), (3, 2), (8, 1)])),
    None,
    Some((1, 0, &[(0, 2)])),
    Some((1, 0, &[(-1, 1), (0, 6)])),
];
const CANARY_GREW: &[Grown] = &[
    (0, 0, &[(0, 2), (1, 4), (4, 1)]),
    (0, 2, &[(-2, 1)]),
    (0, 0, &[]),
    (1, 0, &[(0, 1), (3, 2)]),
    (1, 0, &[]),
    (1, 0, &[(-1, 1), (0, 4)]),
];

/// Finer than the canary, and coarser from the third scrape on, where more values are about zero.
const BASELINE: &[Answer] = &[
    Some((3, 0, &[(-20, 40), (0, 5)])),
    Some((3, 0, &[(-20, 44), (-19, 1), (0, 5)])),
    Some((2, 9, &[(-10, 45), (0, 5)])),
    Some((2, 10, &[(-10, 45), (0, 8)])),
];
const BASELINE_GREW: &[Grown] = &[(3, 0, &[(-20, 4), (-19, 1)]), (2, 0, &[]), (2, 1, &[(0, 3)])];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_histograms_of_a_real_prometheus_are_read_bucket_by_bucket() -> Result<()> {
    let world = world("exporter-native").await?;
    let pods =
        [("shop-aaaaaaaaaa-aaaaa", CANARY, CANARY_GREW), ("shop-bbbbbbbbbb-aaaaa", BASELINE, BASELINE_GREW)];
    let targets = pods.iter().map(|&(pod, script, _)| Target {
        pod,
        scrapes: script.len(),
        answer: Box::new(move |at| script[at].map(|answer| (PROTOBUF, family(answer)))),
        job: json!({"scrape_native_histograms": true, "scrape_protocols": ["PrometheusProto"]}),
    });
    let distribution = MetricQuery::Distribution { histogram: "request_seconds".to_owned() };
    let metrics = BTreeMap::from([("latency".to_owned(), distribution)]);
    let found = read(&world, targets.collect(), &metrics).await?;
    for (pod, _, grew) in pods {
        let increments = found.get(&("latency".to_owned(), pod.to_owned())).context("nothing was read")?;
        // The last answer stays.
        let (script, rest) = increments.split_at_checked(grew.len()).context("too few increments")?;
        ensure!(rest.iter().all(|one| one.total <= 0.0), "{pod}: {rest:#?}");
        for (one, grown) in script.iter().zip(grew) {
            let counted: Vec<_> = one.buckets.iter().filter(|bucket| bucket.count > 0.0).copied().collect();
            let expected = buckets(grown);
            let same = |(one, other): (&Bucket, &Bucket)| {
                let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * a.abs();
                near(one.lower, other.lower)
                    && near(one.upper, other.upper)
                    && one.count.total_cmp(&other.count).is_eq()
            };
            ensure!(
                counted.len() == expected.len() && counted.iter().zip(&expected).all(same),
                "{pod}: {counted:?}, not {expected:?}\n{increments:#?}"
            );
        }
    }
    Ok(())
}

fn buckets((schema, zeros, indices): &Grown) -> Vec<Bucket> {
    let bound = |index: i32| (f64::from(index) / f64::from(*schema).exp2()).exp2();
    let zero = Bucket { lower: -ZERO, upper: ZERO, count: f64::from(*zeros) };
    let others = indices.iter().map(|&(index, count)| Bucket {
        lower: bound(index - 1),
        upper: bound(index),
        count: f64::from(count),
    });
    [zero].into_iter().chain(others).filter(|bucket| bucket.count > 0.0).collect()
}

/// A `MetricFamily` of Prometheus' protocol with one histogram, and its length before it.
fn family((schema, zeros, buckets): (i32, u32, &[(i32, u32)])) -> Vec<u8> {
    let all = zeros + buckets.iter().map(|(_, count)| count).sum::<u32>();
    let mut histogram = Vec::new();
    integer(&mut histogram, 1, u64::from(all));
    double(&mut histogram, 2, f64::from(all));
    integer(&mut histogram, 5, zigzag(schema));
    double(&mut histogram, 6, ZERO);
    integer(&mut histogram, 7, u64::from(zeros));
    // A span for each bucket: how far it is from the one before, and that it is one.
    let mut next = 0;
    for (index, _) in buckets {
        let mut span = Vec::new();
        integer(&mut span, 1, zigzag(index - next));
        integer(&mut span, 2, 1);
        bytes(&mut histogram, 12, &span);
        next = index + 1;
    }
    let mut before = 0;
    for &(_, count) in buckets {
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        integer(&mut histogram, 13, zigzag(count - before));
        before = count;
    }
    let mut metric = Vec::new();
    bytes(&mut metric, 7, &histogram);
    let mut family = Vec::new();
    bytes(&mut family, 1, b"request_seconds");
    integer(&mut family, 3, 4);
    bytes(&mut family, 4, &metric);
    let mut delimited = Vec::new();
    varint(&mut delimited, u64::try_from(family.len()).unwrap_or(u64::MAX));
    delimited.extend(family);
    delimited
}

fn varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    into.push(value.to_le_bytes()[0]);
}

fn zigzag(value: i32) -> u64 {
    u64::from(((value << 1) ^ (value >> 31)).cast_unsigned())
}

fn integer(into: &mut Vec<u8>, field: u64, value: u64) {
    varint(into, field << 3);
    varint(into, value);
}

fn double(into: &mut Vec<u8>, field: u64, value: f64) {
    varint(into, (field << 3) | 1);
    into.extend(value.to_le_bytes());
}

fn bytes(into: &mut Vec<u8>, field: u64, value: &[u8]) {
    varint(into, (field << 3) | 2);
    varint(into, u64::try_from(value.len()).unwrap_or(u64::MAX));
    into.extend(value);
}
