//! Where nobody's metrics are, nobody is asked, however the address is written or found.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use davylamp_api::source::{Authentication, OAuth2, SecretKey, Tls};

use super::*;

/// A server at this address, and how often it was asked. It closes each connection.
async fn counted(address: impl Into<SocketAddr>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(address.into()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&count);
    let router = Router::new().fallback(move || {
        asked.fetch_add(1, Ordering::Relaxed);
        async { ([("connection", "close")], EMPTY) }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    (port, count)
}

#[tokio::test]
async fn no_way_to_write_it_leads_to_a_refused_address() {
    let (port, asked) = counted(([127, 0, 0, 1], 0)).await;
    for host in [
        "127.0.0.1",
        "127.1",
        "127.0.0.1.",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "%31%32%37.0.0.1",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "0",
        "0.0.0.0",
        "localhost",
        "LOCALHOST",
        "[::1]",
        "[::]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:7f00:0001]",
        "[64:ff9b::7f00:1]",
        "[fe80::1]",
        "169.254.169.254",
        "0xa9fea9fe",
        "[fd00:ec2::254]",
        "224.0.0.1",
    ] {
        let refused = api(Addresses::of_system(Vec::new()));
        let answer = refused.query(&source(format!("http://{host}:{port}")), "up[5m]", 0).await;
        assert_eq!(answer, Err(QueryError::RefusedAddress), "{host}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    assert_eq!(ask(&source(format!("http://2130706433:{port}"))).await, Ok(Answer::default()));
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_name_that_moves_after_the_check_is_refused() {
    let (port, metrics) = counted(([127, 0, 0, 2], 0)).await;
    let (_, internal) = counted(([127, 0, 0, 1], port)).await;
    let lookups = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&lookups);
    let lookup = move |host: String| {
        assert_eq!(host, "metrics.example");
        let first = count.fetch_add(1, Ordering::Relaxed) == 0;
        let found = if first { [127, 0, 0, 2] } else { [127, 0, 0, 1] };
        futures::future::ready(Ok(vec![SocketAddr::from((found, 0))])).boxed()
    };
    let api = api(Addresses::found_by(vec!["127.0.0.2/32".parse().unwrap()], lookup));
    let source = source(format!("http://metrics.example:{port}"));
    let ask = || api.query(&source, "up[5m]", 0);
    assert_eq!(ask().await, Ok(Answer::default()));
    assert_eq!((lookups.load(Ordering::Relaxed), metrics.load(Ordering::Relaxed)), (1, 1));
    assert_eq!(ask().await, Err(QueryError::RefusedAddress));
    let asked = (metrics.load(Ordering::Relaxed), internal.load(Ordering::Relaxed));
    assert_eq!((lookups.load(Ordering::Relaxed), asked), (2, (1, 0)));
}

#[tokio::test]
async fn of_several_addresses_the_refused_are_left_out() {
    let (port, internal) = counted(([127, 0, 0, 1], 0)).await;
    let (_, metrics) = counted(([127, 0, 0, 2], port)).await;
    let lookup = |_| {
        let found = [[127, 0, 0, 1], [127, 0, 0, 2]].map(|address| SocketAddr::from((address, 0)));
        futures::future::ready(Ok(found.to_vec())).boxed()
    };
    let api = api(Addresses::found_by(vec!["127.0.0.2/32".parse().unwrap()], lookup));
    let answer = api.query(&source(format!("http://metrics.example:{port}")), "up[5m]", 0).await;
    assert_eq!(answer, Ok(Answer::default()));
    assert_eq!((metrics.load(Ordering::Relaxed), internal.load(Ordering::Relaxed)), (1, 0));
}

#[tokio::test]
async fn the_name_of_a_certificate_is_no_way_around() {
    let tls = |server_name: &str| Tls { server_name: Some(server_name.to_owned()), ..Tls::default() };
    let at = |url: &str, name: &str| MetricSourceSpec { tls: Some(tls(name)), ..source(url) };
    let refused = api(Addresses::of_system(Vec::new()));
    for url in ["https://127.0.0.1:1", "https://localhost:1", "https://[::1]:1"] {
        let answer = refused.query(&at(url, "metrics.example"), "up[5m]", 0).await;
        assert_eq!(answer, Err(QueryError::RefusedAddress), "{url}");
    }
    for name in ["127.0.0.1", "2130706433", "127.1", "0x7f.1"] {
        let error = refused.query(&at("https://192.0.2.1:1", name), "up[5m]", 0).await.unwrap_err();
        assert_eq!(error, QueryError::Tls("tls.serverName is no name"), "{name}");
    }
}

#[tokio::test]
async fn nor_is_the_address_of_tokens() {
    let secret = SecretKey { name: "client".to_owned(), key: "secret".to_owned() };
    let (port, asked) = counted(([127, 0, 0, 1], 0)).await;
    for host in ["127.0.0.1", "0x7f.1", "localhost"] {
        let token_url = format!("http://{host}:{port}/token");
        let client = OAuth2 { token_url, client_secret: secret.clone(), ..OAuth2::default() };
        let authentication = Authentication { oauth2: Some(client), ..Authentication::default() };
        let source = MetricSourceSpec { authentication: Some(authentication), ..source("http://192.0.2.1") };
        let vault = credentials::Vault::default();
        vault.put("client", &[("secret", "s")]);
        let refused = api_of(vault.client(), Addresses::of_system(Vec::new()));
        let error = refused.query(&source, "up[5m]", 0).await.unwrap_err();
        assert!(matches!(error, QueryError::Token(_)), "{error:?}");
        assert!(error.to_string().contains("metadata address, which is refused"), "{error}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}
