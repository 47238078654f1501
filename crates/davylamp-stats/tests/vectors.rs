//! Every worked example of the specification, by the name of its function.
//!
//! The file is `vectors.json` beside this one, or the one that `DAVYLAMP_VECTORS` names.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use davylamp_stats::ripr::{Rates, Ripr, difference_log_factor, ratio_log_factor};
use davylamp_stats::{
    Capital, Counts, EventProcess, Gauge, NonInferiority, RATIO_GRID, SHARE_GRID, Traffic, TrafficSplit,
    bound_requests, closed_form_detect_seconds, closed_form_promote_seconds, combine_log_e,
    counter_increments, event_log_factor, histogram_quantile, hyper_tilt_log_e, information_per_request,
    mid_ranks, pearson_dispersion, pod_effect_margin, pod_effect_margin_student, pod_spread, pods_t_test,
    rank_tilt_log_e, ranksum_p_upper, rr_confidence_sequence, score_log_factor, scores, share_log_e,
    shift_histogram, slo_log_e, t_critical,
};
use serde_json::{Value, json};

#[test]
fn every_vector_holds() {
    let file = read_file();
    let vectors = file["vectors"].as_array().expect("a list of vectors");
    let mut failures = Vec::new();
    assert!(!vectors.is_empty(), "the file has no vectors");
    for vector in vectors {
        let function = text(&vector["function"]);
        let id = &vector["id"];
        match compute(function, &vector["inputs"]) {
            Some(found) => {
                let tolerance = number(&vector["rel_tol"]);
                if !agree(&vector["expected"], &found, tolerance) {
                    failures.push(format!("{id}: expected {}, found {found}", vector["expected"]));
                }
            }
            None => failures.push(format!("{id}: no function is called {function}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_difference_is_noticed() {
    assert!(agree(&json!([1.0, { "a": 2.0 }]), &json!([1.000_000_001, { "a": 2.0 }]), 1e-8));
    assert!(!agree(&json!([1.0]), &json!([1.000_001]), 1e-8));
    assert!(!agree(&json!([1.0, 2.0]), &json!([1.0]), 1e-8));
    assert!(!agree(&json!({ "a": 2.0 }), &json!({ "b": 2.0 }), 1e-8));
    assert!(!agree(&json!(0.0), &json!(1e-14), 1e-8));
    assert!(agree(&json!("inf"), &json!(f64::INFINITY), 1e-8));
    assert!(!agree(&json!("inf"), &json!(1.0), 1e-8));
    assert!(!agree(&json!(1.0), &json!(null), 1e-8));
}

fn read_file() -> Value {
    #[expect(clippy::disallowed_methods, reason = "the name of this variable is part of the specification")]
    let path = std::env::var("DAVYLAMP_VECTORS");
    let path = path.unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors.json").to_owned());
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn agree(expected: &Value, found: &Value, tolerance: f64) -> bool {
    match (expected, found) {
        (Value::Array(expected), Value::Array(found)) => {
            expected.len() == found.len() && expected.iter().zip(found).all(|(e, f)| agree(e, f, tolerance))
        }
        (Value::Object(expected), Value::Object(found)) => {
            expected.len() == found.len()
                && expected.iter().all(|(key, e)| found.get(key).is_some_and(|f| agree(e, f, tolerance)))
        }
        (Value::Number(expected), Value::Number(found)) => {
            let (expected, found) = (expected.as_f64().unwrap(), found.as_f64().unwrap());
            // The logarithm of a number next to 1 is as exact as that number, not as it itself is small.
            (expected - found).abs() <= (4.0 * f64::EPSILON).max(tolerance * expected.abs())
        }
        // JSON has no number for it.
        (Value::String(expected), Value::Null) => expected == "inf",
        (expected, found) => expected == found,
    }
}

/// `None` for a name that no function here has.
fn compute(function: &str, inputs: &Value) -> Option<Value> {
    Some(match function {
        "event_log_e" => event_log_e(inputs),
        "event_log_e_grid" => mixtures(&columns(inputs), number(&inputs["rho0"]), &grid(inputs)),
        "ni_log_e" => {
            let swapped: Vec<Counts> = columns(inputs).iter().map(Counts::swapped).collect();
            mixtures(&swapped, 1.0 / number(&inputs["margin_ratio"]), &grid(inputs))
        }
        "event_clip_log_e" => event_clip_log_e(inputs),
        "share_log_e" => json!(share_log_factors(inputs, number(&inputs["c"]))),
        "share_log_e_grid" => average(
            &share_grid(inputs).into_iter().map(|bet| share_log_factors(inputs, bet)).collect::<Vec<_>>(),
        ),
        "slo_log_e" => slo(inputs),
        "traffic_split" => traffic_split(inputs),
        "pods_t_test" => pods(inputs),
        "rank_tilt_log_e" => rank_tilt(inputs),
        "ranksum_p_upper" => {
            let p = |case: &Value| {
                ranksum_p_upper(&numbers(&case["canary"]), &numbers(&case["baseline"])).unwrap()
            };
            inputs["cases"].as_array().expect("a list of cases").iter().map(p).collect()
        }
        "pearson_dispersion" => {
            let exposure = (!inputs["exposure"].is_string()).then(|| rows(&inputs["exposure"]));
            let counts = rows(&inputs["counts_pod_by_block"]);
            json!(pearson_dispersion(&counts, exposure.as_deref()).unwrap())
        }
        "event_process" => event_process(inputs),
        "info_rate" => info_rate(inputs),
        "planner" => planner(inputs),
        "hyper_tilt_log_e" => hyper_tilt(inputs),
        "pod_effect_margin" => margins(inputs),
        "bernoulli_ripr_rr" => {
            let rho0 = number(&inputs["rho0"]);
            nearest(ratio_log_factor(rho0, &alternative(inputs), &columns(inputs)[0]).unwrap())
        }
        "bernoulli_ripr_diff" => {
            let delta = number(&inputs["delta"]);
            nearest(difference_log_factor(delta, &alternative(inputs), &columns(inputs)[0]).unwrap())
        }
        "ni_process" => ni_process(inputs),
        "combine_log_e" => {
            json!(combine_log_e(&numbers(&inputs["log_e"]), &numbers(&inputs["weights"])).unwrap())
        }
        "rr_confidence_sequence" => {
            let interval =
                rr_confidence_sequence(&columns(inputs), number(&inputs["alpha_each_side"])).unwrap();
            json!([interval.lower, interval.upper])
        }
        "counter_increments" => {
            let samples = inputs["samples"].as_array().expect("a list of samples");
            let increments = counter_increments(&samples.iter().map(Value::as_f64).collect::<Vec<_>>());
            json!({ "increments": increments, "total": increments.iter().sum::<f64>() })
        }
        "histogram_quantile" => {
            let (le, cumulative) = (numbers(&inputs["le"]), numbers(&inputs["cumulative"]));
            json!(histogram_quantile(number(&inputs["phi"]), &le, &cumulative).unwrap())
        }
        "score_tilt_log_e" => {
            let [canary, baseline, scores] =
                ["hist_canary", "hist_baseline", "scores"].map(|field| numbers(&inputs[field]));
            json!(score_log_factor(&canary, &baseline, &scores, number(&inputs["theta"])).unwrap())
        }
        "scores" => {
            let scores = scores(&numbers(&inputs["pooled"])).unwrap();
            let tail = |first: usize| -> Vec<f64> {
                (0..scores.savage.len()).map(|bucket| if bucket >= first { 1.0 } else { 0.0 }).collect()
            };
            let [tail_85, tail_98, tail_99_8] = scores.tails.map(tail);
            json!({
                "van_der_waerden": scores.van_der_waerden,
                "savage": scores.savage,
                "tail_85": tail_85,
                "tail_98": tail_98,
                "tail_99_8": tail_99_8,
            })
        }
        "shift_histogram" => {
            let [bounds, canary, pooled] = ["le", "canary", "pooled"].map(|field| numbers(&inputs[field]));
            json!(shift_histogram(&bounds, &canary, &pooled, number(&inputs["tolerance"])).unwrap())
        }
        _ => return None,
    })
}

/// The cumulative log factor of one alternative.
fn event_log_e(inputs: &Value) -> Value {
    let rho0 = number(&inputs["rho0"]);
    let ratio = number(&inputs["rho1"]) / rho0;
    let log_factors =
        columns(inputs).iter().map(|counts| event_log_factor(rho0, ratio, counts).unwrap()).collect();
    json!(cumulative(log_factors))
}

/// The mixture over the grid after each poll, without clip, reserve and restarts: the average of its
/// alternatives.
fn mixtures(polls: &[Counts], rho0: f64, grid: &[f64]) -> Value {
    let alternative =
        |&ratio| cumulative(polls.iter().map(|c| event_log_factor(rho0, ratio, c).unwrap()).collect());
    average(&grid.iter().map(alternative).collect::<Vec<_>>())
}

/// The average of alternatives after each poll.
fn average(alternatives: &[Vec<f64>]) -> Value {
    let weights = vec![1.0 / f64::from(u32::try_from(alternatives.len()).unwrap()); alternatives.len()];
    let after_poll = |poll: usize| {
        let log_e: Vec<f64> = alternatives.iter().map(|log_e| log_e[poll]).collect();
        combine_log_e(&log_e, &weights).unwrap()
    };
    (0..alternatives[0].len()).map(after_poll).collect()
}

/// The same capital as in the process, with a constant clip and a constant hazard.
fn event_clip_log_e(inputs: &Value) -> Value {
    let grid: [f64; 12] = grid(inputs).try_into().expect("the capital has twelve alternatives");
    let (rho0, clip) = (number(&inputs["rho0"]), number(&inputs["clip_log"]));
    let polls_per_block = usize::try_from(inputs["polls_per_block"].as_u64().unwrap()).unwrap();
    let mut capital = Capital::new([1.0 / 12.0; 12], number(&inputs["first"])).unwrap();
    let mut after_poll = |(poll, counts): (usize, &Counts)| {
        if poll.is_multiple_of(polls_per_block) {
            capital.close(clip);
            capital.restart(number(&inputs["hazard"]));
        }
        capital.add(&grid.map(|ratio| event_log_factor(rho0, ratio, counts).unwrap())).unwrap();
        capital.log_e(clip)
    };
    columns(inputs).iter().enumerate().map(&mut after_poll).collect()
}

fn event_process(inputs: &Value) -> Value {
    let (rho0, block_seconds) = (number(&inputs["rho0"]), number(&inputs["block_seconds"]));
    let mut process = EventProcess::new(rho0, block_seconds, inputs["floor"].as_f64()).unwrap();
    let after_round = |(counts, new_block): (Counts, bool)| {
        process.round(&counts, new_block).unwrap();
        process.log_e()
    };
    rounds(inputs).map(after_round).collect()
}

fn ni_process(inputs: &Value) -> Value {
    let absolute = inputs["delta"].as_f64().map(|delta| (delta, number(&inputs["next_weight"])));
    let mut process = NonInferiority::new(number(&inputs["margin"]), absolute).unwrap();
    let after_round = |(counts, new_block): (Counts, bool)| {
        process.round(&counts, new_block).unwrap();
        json!({
            "log_e": process.log_e(),
            "log_e_ratio": process.log_e_ratio(),
            "log_e_absolute": process.log_e_absolute(),
        })
    };
    rounds(inputs).map(after_round).collect()
}

fn hyper_tilt(inputs: &Value) -> Value {
    let x_canary = number(&inputs["x_canary"]);
    let counts = Counts {
        x_canary,
        x_baseline: number(&inputs["total_events"]) - x_canary,
        n_canary: number(&inputs["n_canary"]),
        n_baseline: number(&inputs["n_baseline"]),
    };
    let tilt = hyper_tilt_log_e(number(&inputs["psi"]), &counts).unwrap();
    json!({ "log_mgf": tilt.log_mgf, "log_e": tilt.log_e })
}

fn margins(inputs: &Value) -> Value {
    let whole = |name: &str| u32::try_from(inputs[name].as_u64().unwrap()).unwrap();
    let spread = pod_spread(number(&inputs["tau"]), whole("k_canary"), whole("k_baseline")).unwrap();
    let (rho0, alpha) = (number(&inputs["rho0"]), number(&inputs["alpha"]));
    json!({
        "normal": pod_effect_margin(rho0, spread, alpha).unwrap(),
        "student": pod_effect_margin_student(rho0, spread, alpha, whole("df")).unwrap(),
    })
}

fn info_rate(inputs: &Value) -> Value {
    let rates = Rates { canary: number(&inputs["p_canary"]), baseline: number(&inputs["p_baseline"]) };
    let (weight, rho0) = (number(&inputs["weight"]), number(&inputs["rho0"]));
    let information = information_per_request(&rates, weight, rho0).unwrap();
    let requests = bound_requests(information, number(&inputs["alpha"])).unwrap().unwrap();
    json!({
        "nats_per_request": information,
        "bound_requests": requests,
        "bound_seconds": requests / number(&inputs["rps"]),
    })
}

/// The closed forms; one metric of several has its share of alpha.
fn planner(inputs: &Value) -> Value {
    let traffic = Traffic {
        requests_per_second: number(&inputs["rps"]),
        weight: number(&inputs["weight"]),
        rate: number(&inputs["p"]),
        block_seconds: number(&inputs["block_s"]),
    };
    let alpha = number(&inputs["alpha"]) / number(&inputs["metrics"]);
    let (ratio, margin, beta) =
        (number(&inputs["ratio"]), number(&inputs["margin"]), number(&inputs["beta"]));
    let detect = closed_form_detect_seconds(&traffic, ratio, 1.0, alpha, number(&inputs["r"]));
    let promote = closed_form_promote_seconds(&traffic, margin, beta, number(&inputs["r_promote"]));
    json!({ "detect_seconds": detect.unwrap(), "promote_seconds": promote.unwrap() })
}

fn alternative(inputs: &Value) -> Rates {
    Rates { canary: number(&inputs["theta1_canary"]), baseline: number(&inputs["theta1_baseline"]) }
}

fn nearest(ripr: Ripr) -> Value {
    json!({
        "theta0_canary": ripr.null.canary,
        "theta0_baseline": ripr.null.baseline,
        "log_e": ripr.log_e,
    })
}

/// The cumulative log factors of one bet.
fn share_log_factors(inputs: &Value, bet: f64) -> Vec<f64> {
    let shares = numbers(&inputs["share"]);
    let expected = as_many(&inputs["q0"], shares.len());
    cumulative(shares.iter().zip(expected).map(|(&s, q)| share_log_e(bet, s, q).unwrap()).collect())
}

/// A text, or nothing, stands for the default.
fn share_grid(inputs: &Value) -> Vec<f64> {
    if inputs["c_grid"].is_array() { numbers(&inputs["c_grid"]) } else { SHARE_GRID.to_vec() }
}

fn slo(inputs: &Value) -> Value {
    let (events, null) = (numbers(&inputs["x"]), number(&inputs["p0"]));
    let exposure = as_many(&inputs["n"], events.len());
    let alternative = |&rate: &f64| {
        let rounds = events.iter().zip(&exposure);
        cumulative(rounds.map(|(&x, &n)| slo_log_e(null, rate, x, n).unwrap()).collect())
    };
    let rates = numbers(&inputs["p1"]);
    average(&rates.iter().filter(|rate| **rate < 1.0).map(alternative).collect::<Vec<_>>())
}

fn traffic_split(inputs: &Value) -> Value {
    let blocks = rows(&inputs["blocks"]);
    let mut split = TrafficSplit::new(number(&inputs["tolerance"])).unwrap();
    let weights = as_many(&inputs["weight"], blocks.len());
    let after_block = |(block, weight): (&Vec<f64>, f64)| {
        split.block(block[0], block[1], weight).unwrap();
        split.log_e()
    };
    blocks.iter().zip(weights).map(after_block).collect()
}

fn pods(inputs: &Value) -> Value {
    let cohort = |name: &str| -> Vec<[f64; 1]> { numbers(&inputs[name]).into_iter().map(|v| [v]).collect() };
    let gauge = if inputs["log"] == json!(true) { Gauge::Level } else { Gauge::Growth };
    let tolerance = inputs["tolerance"].as_f64().unwrap_or(0.0);
    let test = pods_t_test(&cohort("canary"), &cohort("baseline"), gauge, tolerance).unwrap();
    test.map_or(Value::Null, |test| {
        json!({
            "t": test.t,
            "df": test.df,
            "p": test.p,
            "t_critical_alpha_0p01_over_6_looks": t_critical(0.01 / 6.0, test.df).unwrap(),
        })
    })
}

fn rank_tilt(inputs: &Value) -> Value {
    let values = numbers(&inputs["values"]);
    let pods = usize::try_from(inputs["n_canary_pods"].as_u64().unwrap()).unwrap();
    let (canary, baseline) = values.split_at(pods);
    let tilt = rank_tilt_log_e(canary, baseline, number(&inputs["theta"])).unwrap();
    json!({
        "mid_ranks": mid_ranks(&values).unwrap(),
        "rank_sum": tilt.rank_sum,
        "log_mgf": tilt.log_mgf,
        "log_e": tilt.log_e,
    })
}

/// The counts of inputs that have one list, or one number, per field.
fn columns(inputs: &Value) -> Vec<Counts> {
    let fields = ["x_canary", "x_baseline", "n_canary", "n_baseline"].map(|field| numbers(&inputs[field]));
    let [x_canary, x_baseline, n_canary, n_baseline] = fields;
    let length = x_canary.len();
    assert!([&x_baseline, &n_canary, &n_baseline].iter().all(|field| field.len() == length));
    let poll = |i: usize| Counts {
        x_canary: x_canary[i],
        x_baseline: x_baseline[i],
        n_canary: n_canary[i],
        n_baseline: n_baseline[i],
    };
    (0..length).map(poll).collect()
}

/// The counts of inputs that have a list of rounds, and whether a block begins.
fn rounds(inputs: &Value) -> impl Iterator<Item = (Counts, bool)> {
    let round = |round: &Value| (columns(round)[0], round["new_block"].as_bool().expect("true or false"));
    inputs["rounds"].as_array().expect("a list of rounds").iter().map(round)
}

/// A text, or nothing, stands for the default.
fn grid(inputs: &Value) -> Vec<f64> {
    if inputs["ratio_grid"].is_array() { numbers(&inputs["ratio_grid"]) } else { RATIO_GRID.to_vec() }
}

fn cumulative(mut values: Vec<f64>) -> Vec<f64> {
    let mut sum = 0.0;
    for value in &mut values {
        sum += *value;
        *value = sum;
    }
    values
}

fn numbers(value: &Value) -> Vec<f64> {
    match value.as_array() {
        Some(values) => values.iter().map(number).collect(),
        None => vec![number(value)],
    }
}

/// A number stands for as many of it.
fn as_many(value: &Value, count: usize) -> Vec<f64> {
    if value.is_array() { numbers(value) } else { vec![number(value); count] }
}

fn rows(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().expect("a list of lists").iter().map(numbers).collect()
}

/// The bound of a last bucket is a text.
fn number(value: &Value) -> f64 {
    match value.as_str() {
        Some("inf" | "+Inf") => f64::INFINITY,
        _ => value.as_f64().unwrap_or_else(|| panic!("{value} is not a number")),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a text"))
}
