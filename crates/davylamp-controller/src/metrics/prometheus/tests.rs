//! The client against servers that answer well, badly, endlessly or never.

mod addresses;
mod credentials;
mod tls;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::routing::{any, post};
use davylamp_api::scalar::Duration;
use futures::stream;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::fake::{self, no};

const EMPTY: &str = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;

async fn serve(router: Router) -> MetricSourceSpec {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    source(url)
}

fn source(url: impl Into<String>) -> MetricSourceSpec {
    MetricSourceSpec {
        url: url.into(),
        allowed_namespaces: vec!["*".to_owned()],
        ..MetricSourceSpec::default()
    }
}

/// As it reaches the servers here.
fn local() -> Addresses {
    Addresses::of_system(vec!["127.0.0.0/8".parse().unwrap()])
}

/// Where there are no secrets.
fn api(addresses: Addresses) -> PrometheusApi {
    let client = fake::client(|_| futures::future::ready(no(404, "NotFound")).boxed());
    api_of(client, addresses)
}

fn api_of(client: kube::Client, addresses: Addresses) -> PrometheusApi {
    let _ = rustls::crypto::ring::default_provider().install_default();
    PrometheusApi { access: Access::new(Some(client), "davylamp-system".to_owned(), addresses) }
}

async fn ask(source: &MetricSourceSpec) -> Result<Answer, QueryError> {
    api(local()).query(source, "up{a=\"b&c\"}[5m]", 1_700_000_000_012).await
}

async fn answers(status: u16, body: impl Into<String>) -> Result<Answer, QueryError> {
    let (status, body) = (StatusCode::from_u16(status).unwrap(), body.into());
    let reply = move || async move { (status, body) };
    ask(&serve(Router::new().route("/api/v1/query", post(reply))).await).await
}

#[tokio::test]
async fn asks_by_post_and_reads_series() {
    let echo = |request: Request| async move {
        let form = axum::body::to_bytes(request.into_body(), 10_000).await.unwrap();
        let matrix = json!([
            {"metric": {"__name__": "up", "pod": "a"}, "values": [[1_700_000_000.5, "1"], [1_700_000_001, "NaN"]]},
            {"metric": {"form": String::from_utf8_lossy(&form)}},
            {"metric": {}, "histograms": [
                [1, {"count": "0", "sum": "0"}],
                [2.5, {"count": "3", "sum": "2", "buckets": [[0, "0.5", "1", "2"], [3, "-0.001", "0.001", "1"]]}],
                [3, {"count": "6", "sum": "2", "buckets": [[3, "0", "0", "2"], [0, "-Inf", "0.1", "3"], [0, "1", "+Inf", "1"]]}],
            ]},
        ]);
        let data = json!({"resultType": "matrix", "result": matrix});
        json!({"status": "success", "data": data, "warnings": [], "infos": ["i"]}).to_string()
    };
    let mut source = serve(Router::new().route("/prom/api/v1/query", post(echo))).await;
    source.url.push_str("/prom/");
    let answer = ask(&source).await.unwrap();
    assert!(!answer.partial);
    assert_eq!(&answer.series[0].labels["pod"], "a");
    let samples = &answer.series[0].samples;
    assert_eq!((samples[0], samples[1].0), ((1_700_000_000_500, 1.0), 1_700_000_001_000));
    assert!(samples[1].1.is_nan());
    assert_eq!(
        &answer.series[1].labels["form"],
        "query=up%7Ba%3D%22b%26c%22%7D%5B5m%5D&time=1700000000.012&timeout=10000ms&nocache=1&latency_offset=1ms"
    );
    assert!(answer.series[2].samples.is_empty());
    let bucket = |lower, upper, count| Bucket { lower, upper, count };
    let buckets = vec![bucket(0.5, 1.0, 2.0), bucket(-0.001, 0.001, 1.0)];
    // Zeros alone, and the ends of custom bounds.
    let zeros = bucket(-f64::MIN_POSITIVE, f64::MIN_POSITIVE, 2.0);
    let ends = vec![zeros, bucket(f64::NEG_INFINITY, 0.1, 3.0), bucket(1.0, f64::INFINITY, 1.0)];
    assert_eq!(answer.series[2].histograms, [(1_000, vec![]), (2_500, buckets), (3_000, ends)]);
}

#[tokio::test]
async fn an_instant_vector_is_series_of_one_sample() {
    let body =
        r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1.5,"7"]}]}}"#;
    assert_eq!(answers(200, body).await.unwrap().series[0].samples, [(1_500, 7.0)]);
}

#[tokio::test]
async fn a_partial_answer_is_told() {
    for (said, partial) in
        [(r#""isPartial":true"#, true), (r#""warnings":["w"]"#, true), (r#""infos":["i"]"#, false)]
    {
        let body = format!(r#"{{"status":"success",{said},"data":{{"resultType":"matrix","result":[]}}}}"#);
        assert_eq!(answers(200, body).await.unwrap().partial, partial, "{said}");
    }
}

#[tokio::test]
async fn an_error_in_json_is_named_by_its_kind_alone() {
    let body = r#"{"status":"error","errorType":"bad_data","error":"secret"}"#;
    let error = answers(400, body).await.unwrap_err();
    assert_eq!(error.to_string(), "refused the query: bad_data (HTTP 400)");
    let body = r#"{"status":"error","errorType":"<b>secret</b>","error":"secret"}"#;
    let error = answers(503, body).await.unwrap_err();
    assert_eq!(error, QueryError::Refused { status: 503, kind: "error" });
}

#[tokio::test]
async fn what_is_not_prometheus_is_told_apart() {
    let html = "\n<!doctype html><p>secret";
    let error = answers(200, html).await.unwrap_err();
    assert_eq!(error.to_string(), "answered HTML, not JSON: is the URL that of Prometheus?");
    assert_eq!(answers(200, "").await, Err(QueryError::NotJson { html: false }));
    assert_eq!(answers(200, "{\"status\":").await, Err(QueryError::NotJson { html: false }));
    assert_eq!(answers(200, "[".repeat(100_000)).await, Err(QueryError::NotJson { html: false }));
    assert_eq!(answers(502, html).await, Err(QueryError::Http(502)));
    assert_eq!(answers(401, html).await, Err(QueryError::Unauthorized(401)));
    assert_eq!(answers(403, EMPTY).await, Err(QueryError::Unauthorized(403)));
    for body in [
        "{}",
        "[]",
        "3",
        r#"{"status":"success"}"#,
        r#"{"status":"ok","data":{"resultType":"matrix","result":[]}}"#,
        r#"{"status":"success","data":{"resultType":"<secret>","result":[]}}"#,
        r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[1,"x"]]}]}}"#,
        r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[1]]}]}}"#,
        r#"{"status":"success","data":{"resultType":"matrix","result":{}}}"#,
    ] {
        assert_eq!(answers(200, body).await, Err(QueryError::NotPrometheus), "{body}");
    }
    let vector = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"1"]}}"#;
    assert_eq!(answers(200, vector).await, Err(QueryError::WrongType("scalar")));
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let there = any(async || -> StatusCode { unreachable!("followed") });
    let here = post(|| async { (StatusCode::TEMPORARY_REDIRECT, [("location", "/there")]).into_response() });
    let source = serve(Router::new().route("/api/v1/query", here).route("/there", there)).await;
    assert_eq!(ask(&source).await, Err(QueryError::Redirect(307)));
}

#[tokio::test]
async fn an_endless_body_is_cut() {
    let endless = post(|| async {
        let spaces = stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1 << 16]));
        Body::from_stream(spaces)
    });
    let source = serve(Router::new().route("/api/v1/query", endless)).await;
    let error = ask(&source).await.unwrap_err();
    assert_eq!(error, QueryError::TooLarge(4 << 20));
    assert!(error.to_string().starts_with("answered more than 4 MiB"), "{error}");
}

#[tokio::test]
async fn a_body_may_be_as_large_as_the_source_says() {
    let most = 1 << 20;
    for (size, taken) in [(most, Ok(Answer::default())), (most + 1, Err(QueryError::TooLarge(most)))] {
        let padded = post(move || async move { EMPTY.to_owned() + &" ".repeat(size - EMPTY.len()) });
        let source = serve(Router::new().route("/api/v1/query", padded)).await;
        let limits = Some(Limits { body_mib: Some(1), ..Limits::default() });
        assert_eq!(ask(&MetricSourceSpec { limits, ..source }).await, taken, "{size}");
    }
}

#[tokio::test]
async fn who_never_answers_is_given_up() {
    let quick = Some(Limits { timeout: Some(Duration::from_millis(100)), ..Limits::default() });
    let silent = serve(Router::new().route("/api/v1/query", post(std::future::pending::<()>))).await;
    assert_eq!(ask(&MetricSourceSpec { limits: quick, ..silent }).await, Err(QueryError::Timeout));
    let stuck = post(|| async { Body::from_stream(stream::pending::<Result<Vec<u8>, std::io::Error>>()) });
    let stuck = serve(Router::new().route("/api/v1/query", stuck)).await;
    assert_eq!(ask(&MetricSourceSpec { limits: quick, ..stuck }).await, Err(QueryError::Timeout));
}

#[tokio::test]
async fn an_absent_server_is_named_without_its_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = ask(&source(url)).await.unwrap_err();
    assert!(matches!(error, QueryError::Unreachable(_)), "{error:?}");
    assert!(!error.to_string().contains("127.0.0.1"), "{error}");
    for url in ["ftp://a", "", "prometheus:9090", "http://", "http://me@a", "http://:secret@a"] {
        assert_eq!(ask(&source(url)).await, Err(QueryError::Address), "{url}");
    }
}
