//! How the counts of a run grew, for its record: a row for each checkpoint, which is written once a minute at most.

use davylamp_api::checkpoint::MetricCheckpoint;
use davylamp_api::run::MetricSeries;
use davylamp_api::status::AnalysisStatus;

/// The end of the data that the checkpoint is about, ms since 1970; 0 when there is none. A decision ends the data of a weight.
pub(crate) fn until(analysis: Option<&AnalysisStatus>) -> i64 {
    let checkpoint = analysis.and_then(|analysis| analysis.checkpoint.as_ref());
    checkpoint.map_or(0, |one| if one.t0 > 0 { one.folded_until } else { one.closed })
}

/// Adds a row to each series; false when nothing is new.
pub(crate) fn add(series: &mut Vec<MetricSeries>, analysis: &AnalysisStatus) -> bool {
    let until = until(Some(analysis));
    let Some(checkpoint) = analysis.checkpoint.as_ref().filter(|_| until > 0) else { return false };
    #[allow(clippy::cast_precision_loss, reason = "a time in ms")]
    let seconds = until as f64 / 1_000.0;
    let mut added = false;
    for metric in &analysis.metrics {
        let Some(kept) = checkpoint.metrics.get(&metric.name) else { continue };
        let at = series.iter().position(|one| one.name == metric.name).unwrap_or_else(|| {
            series.push(MetricSeries { name: metric.name.clone(), rows: Vec::new() });
            series.len() - 1
        });
        let rows = &mut series[at].rows;
        if rows.last().is_some_and(|[last, ..]| *last >= seconds) {
            continue;
        }
        let [canary_events, baseline_events, canary, baseline] = sums(kept);
        let evidence = f64::from(metric.evidence.basis_points()) / 10_000.0;
        rows.push([seconds, canary_events, canary, baseline_events, baseline, evidence]);
        added = true;
        if rows.len() > MetricSeries::ROWS {
            // The newest one stays.
            let mut place = rows.len();
            rows.retain(|_| {
                place -= 1;
                place.is_multiple_of(2)
            });
        }
    }
    added
}

/// Of all steps.
fn sums(kept: &MetricCheckpoint) -> [f64; 4] {
    kept.rows.iter().fold([0.0; 4], |mut sums, row| {
        for (sum, n) in sums.iter_mut().zip(row) {
            *sum += n;
        }
        sums
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use davylamp_api::checkpoint::Checkpoint;
    use davylamp_api::scalar::Percent;
    use davylamp_api::status::{MetricStatus, Verdict};

    use super::*;

    const MINUTE: i64 = 60_000;

    fn analysis(minute: i64, metrics: usize) -> AnalysisStatus {
        #[allow(clippy::cast_precision_loss, reason = "small")]
        let n = minute as f64;
        let names: Vec<String> = (0..metrics).map(|i| format!("metric-{i}")).collect();
        let kept = MetricCheckpoint {
            rows: vec![[n, 2.0 * n, 10.0 * n, 90.0 * n], [1.0, 2.0, 10.0, 90.0]],
            ..MetricCheckpoint::default()
        };
        let status = |name: &String| MetricStatus {
            name: name.clone(),
            evidence: Percent::from_basis_points(1_250),
            verdict: Verdict::Collecting,
            ..MetricStatus::default()
        };
        AnalysisStatus {
            metrics: names.iter().map(status).collect(),
            checkpoint: Some(Checkpoint {
                t0: 1,
                folded_until: minute * MINUTE,
                metrics: names.iter().map(|name| (name.clone(), kept.clone())).collect::<BTreeMap<_, _>>(),
                ..Checkpoint::default()
            }),
            ..AnalysisStatus::default()
        }
    }

    #[test]
    fn a_row_holds_the_counts_of_the_run_so_far() {
        let mut series = Vec::new();
        assert!(add(&mut series, &analysis(5, 1)));
        assert!(!add(&mut series, &analysis(5, 1)), "nothing is new");
        assert!(!add(&mut series, &analysis(4, 1)), "that was before");
        let first = [300.0, 6.0, 60.0, 12.0, 540.0, 0.125];
        assert_eq!(series, [MetricSeries { name: "metric-0".to_owned(), rows: vec![first] }]);
        let mut decided = analysis(9, 1);
        let checkpoint = decided.checkpoint.as_mut().unwrap();
        (checkpoint.t0, checkpoint.closed) = (0, 6 * MINUTE);
        assert!(add(&mut series, &decided) && !add(&mut series, &decided));
        assert_eq!(series[0].rows[1][0].to_bits(), 360.0_f64.to_bits(), "the end of what was judged");
    }

    #[test]
    fn a_day_with_ten_metrics_stays_small_and_keeps_its_last_row() {
        let mut series = Vec::new();
        for minute in 1..=24 * 60 {
            assert!(add(&mut series, &analysis(minute * 1_000, 10)));
            let rows = &series[0].rows;
            assert!(rows.len() <= MetricSeries::ROWS && rows.is_sorted_by(|a, b| a[0] < b[0]));
            #[allow(clippy::cast_precision_loss, reason = "small")]
            let now = (minute * MINUTE) as f64;
            assert_eq!(rows.last().map(|row| row[0].to_bits()), Some(now.to_bits()));
        }
        let bytes = serde_json::to_string(&series).unwrap().len();
        assert!(series[0].rows.len() > 100 && bytes < 200_000, "{bytes}");
    }
}
