//! What secrets hold reaches the server, once it is needed, and nobody else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::http::HeaderMap;
use davylamp_api::k8s_openapi::ByteString;
use davylamp_api::k8s_openapi::api::core::v1::Secret;
use davylamp_api::source::{Authentication, Basic, Bearer, Header, OAuth2, SecretKey, Tenant};
use serde_json::Value;

use super::*;

const VALUE: &str = "top-secret-value";

/// The secrets of a namespace, and which were asked for.
#[derive(Clone, Default)]
pub(super) struct Vault {
    secrets: Arc<Mutex<BTreeMap<String, (u16, Value)>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Vault {
    pub(super) fn put(&self, name: &str, data: &[(&str, &str)]) {
        self.put_as("Opaque", name, data);
    }

    fn put_as(&self, kind: &str, name: &str, data: &[(&str, &str)]) {
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        let secret = Secret { type_: Some(kind.to_owned()), data: Some(data.collect()), ..Secret::default() };
        self.answer(name, (200, serde_json::to_value(secret).unwrap()));
    }

    fn answer(&self, name: &str, answer: (u16, Value)) {
        self.secrets.lock().unwrap().insert(name.to_owned(), answer);
    }

    pub(super) fn client(&self) -> kube::Client {
        let vault = self.clone();
        fake::client(move |asked| {
            vault.asked.lock().unwrap().push(format!("{} {}", asked.method, asked.path));
            let name = asked.path.rsplit('/').next().unwrap_or_default().trim_end_matches('?').to_owned();
            let answer = vault.secrets.lock().unwrap().get(&name).cloned();
            futures::future::ready(answer.unwrap_or_else(|| no(404, "NotFound"))).boxed()
        })
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// Answers who comes with the right word, and keeps what was sent.
#[derive(Clone, Default)]
struct Server {
    /// The header `Authorization` that it takes; any, if none.
    takes: Arc<Mutex<Option<String>>>,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Server {
    fn router(&self) -> Router {
        let server = self.clone();
        Router::new().fallback(move |headers: HeaderMap| async move {
            let takes = server.takes.lock().unwrap().clone();
            let given = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
            server.seen.lock().unwrap().push(headers);
            let status = if takes.is_none() || takes == given { 200 } else { 401 };
            (StatusCode::from_u16(status).unwrap(), EMPTY)
        })
    }

    fn take(&self, authorization: &str) {
        *self.takes.lock().unwrap() = Some(authorization.to_owned());
    }

    fn last(&self, header: &str) -> Option<String> {
        let seen = self.seen.lock().unwrap();
        seen.last()?.get(header).map(|value| value.to_str().unwrap().to_owned())
    }
}

fn at(name: &str, key: &str) -> SecretKey {
    SecretKey { name: name.to_owned(), key: key.to_owned() }
}

fn bearer(name: &str, key: &str) -> Authentication {
    let bearer = Some(Bearer { token: at(name, key) });
    Authentication { bearer, ..Authentication::default() }
}

pub(super) async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn each_way_to_ask_reaches_the_server() {
    let (server, vault) = (Server::default(), Vault::default());
    vault.put_as("kubernetes.io/basic-auth", "basic", &[("password", "pass")]);
    vault.put("tokens", &[("token", "abc\n"), ("key", "k")]);
    let open = serve(server.router()).await;
    let api = api_of(vault.client(), local());

    assert_eq!(api.query(&open, "up[5m]", 0).await, Ok(Answer::default()));
    assert_eq!((server.last("authorization"), server.last("x-scope-orgid")), (None, None));
    assert_eq!(vault.asked(), 0);

    let basic = Some(Basic { username: "me".to_owned(), password: at("basic", "password") });
    let authentication = Some(Authentication { basic, ..Authentication::default() });
    let by_name = MetricSourceSpec { authentication, ..open.clone() };
    assert_eq!(api.query(&by_name, "up[5m]", 0).await, Ok(Answer::default()));
    assert_eq!(server.last("authorization").as_deref(), Some("Basic bWU6cGFzcw=="));

    let by_token = MetricSourceSpec { authentication: Some(bearer("tokens", "token")), ..open.clone() };
    assert_eq!(api.query(&by_token, "up[5m]", 0).await, Ok(Answer::default()));
    assert_eq!(server.last("authorization").as_deref(), Some("Bearer abc"));

    let plain = Header { name: "X-A".to_owned(), value: Some("a b".to_owned()), secret: None };
    let secret = Header { name: "X-Key".to_owned(), value: None, secret: Some(at("tokens", "key")) };
    let tenant = Some(Tenant { header: None, value: "shop|blog".to_owned() });
    let by_headers = MetricSourceSpec { headers: Some(vec![plain, secret]), tenant, ..open.clone() };
    assert_eq!(api.query(&by_headers, "up[5m]", 0).await, Ok(Answer::default()));
    let seen = ["x-a", "x-key", "x-scope-orgid"].map(|name| server.last(name).unwrap());
    assert_eq!(seen, ["a b", "k", "shop|blog"]);
    let tenant = Some(Tenant { header: Some("THANOS-TENANT".to_owned()), value: "a".to_owned() });
    assert_eq!(api.query(&MetricSourceSpec { tenant, ..open }, "up[5m]", 0).await, Ok(Answer::default()));
    assert_eq!(server.last("thanos-tenant").as_deref(), Some("a"));

    let path = "GET /api/v1/namespaces/davylamp-system/secrets";
    let asked: Vec<_> = vault.asked.lock().unwrap().iter().map(|asked| asked.replace('?', "")).collect();
    assert_eq!(asked, [format!("{path}/basic"), format!("{path}/tokens")]);
}

#[tokio::test]
async fn a_secret_is_read_again_when_it_is_refused() {
    let (server, vault) = (Server::default(), Vault::default());
    vault.put("tokens", &[("token", "one")]);
    server.take("Bearer one");
    let source =
        MetricSourceSpec { authentication: Some(bearer("tokens", "token")), ..serve(server.router()).await };
    let api = api_of(vault.client(), local());
    let ask = || api.query(&source, "up[5m]", 0);
    assert_eq!((ask().await, ask().await, vault.asked()), (Ok(Answer::default()), Ok(Answer::default()), 1));

    server.take("Bearer two");
    assert_eq!((ask().await, vault.asked()), (Err(QueryError::Unauthorized(401)), 1));
    vault.put("tokens", &[("token", "two")]);
    later(5).await;
    assert_eq!((ask().await, ask().await, vault.asked()), (Ok(Answer::default()), Ok(Answer::default()), 2));
    later(61).await;
    assert_eq!((ask().await, vault.asked()), (Ok(Answer::default()), 3));

    // The API server is away: what was read is still good.
    vault.answer("tokens", no(500, "InternalError"));
    later(61).await;
    assert_eq!((ask().await, vault.asked() > 3), (Ok(Answer::default()), true));
}

#[tokio::test]
async fn what_cannot_be_used_is_named_by_secret_and_key() {
    let vault = Vault::default();
    vault.put("tokens", &[("other", VALUE), ("empty", "\n"), ("lines", "top-secret-value\nx")]);
    vault.put_as("helm.sh/release.v1", "release", &[("release", VALUE)]);
    vault.answer("forbidden", no(403, "Forbidden"));
    vault.answer("broken", (200, json!({"data": {"token": VALUE}})));
    let server = serve(Server::default().router()).await;
    for (name, key, problem) in [
        ("absent", "token", "there is no such secret"),
        ("tokens", "token", "there is no such key"),
        ("tokens", "empty", "it is empty"),
        ("tokens", "lines", "no header can carry it: it is one line of plain characters"),
        (
            "release",
            "release",
            "its type is none of Opaque, kubernetes.io/basic-auth and kubernetes.io/tls, so it is not sent anywhere",
        ),
        ("forbidden", "token", "the controller's account may not get it"),
        ("broken", "token", "the API server did not give it"),
        ("../configmaps/a", "token", "that is no name of a secret"),
    ] {
        let source = MetricSourceSpec { authentication: Some(bearer(name, key)), ..server.clone() };
        let error = api_of(vault.client(), local()).query(&source, "up[5m]", 0).await.unwrap_err();
        assert_eq!(error.to_string(), format!("key {key} of secret davylamp-system/{name}: {problem}"));
        assert!(!format!("{error:?}").contains(VALUE), "{error:?}");
    }
    assert!(!vault.asked.lock().unwrap().iter().any(|asked| asked.contains("configmaps")));
}

/// A token endpoint: the n-th token is `token-n`, and the last question is kept.
async fn endpoint(answer: impl Fn(usize) -> (u16, String) + Clone + Send + Sync + 'static) -> Endpoint {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let router = Router::new().route(
        "/token",
        post(move |headers: HeaderMap, body: String| async move {
            let number = {
                let mut seen = seen.lock().unwrap();
                seen.push((headers["authorization"].to_str().unwrap().to_owned(), body));
                seen.len()
            };
            let (status, body) = answer(number);
            (StatusCode::from_u16(status).unwrap(), [("location", "/elsewhere")], body)
        }),
    );
    Endpoint { url: format!("{}/token", serve(router).await.url), asked }
}

struct Endpoint {
    url: String,
    asked: Arc<Mutex<Vec<(String, String)>>>,
}

impl Endpoint {
    fn authentication(&self) -> Authentication {
        let client = OAuth2 {
            token_url: self.url.clone(),
            client_id: "davy lamp".to_owned(),
            client_secret: at("client", "secret"),
            scopes: Some(vec!["read".to_owned(), "metrics".to_owned()]),
            parameters: Some([("audience".to_owned(), "https://mimir".to_owned())].into()),
            tls: None,
        };
        Authentication { oauth2: Some(client), ..Authentication::default() }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn token(number: usize) -> (u16, String) {
    let token = json!({"access_token": format!("token-{number}"), "token_type": "bearer", "expires_in": 100});
    (200, token.to_string())
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_replaced_before_its_end_or_when_it_is_refused() {
    let (server, vault) = (Server::default(), Vault::default());
    vault.put("client", &[("secret", "s/cret")]);
    let endpoint = endpoint(token).await;
    let source =
        MetricSourceSpec { authentication: Some(endpoint.authentication()), ..serve(server.router()).await };
    let api = api_of(vault.client(), local());
    let ask = || api.query(&source, "up[5m]", 0);
    server.take("Bearer token-1");
    assert_eq!(
        (ask().await, ask().await, endpoint.asked()),
        (Ok(Answer::default()), Ok(Answer::default()), 1)
    );
    // davy+lamp:s%2Fcret
    let question = (
        "Basic ZGF2eStsYW1wOnMlMkZjcmV0".to_owned(),
        "grant_type=client_credentials&scope=read+metrics&audience=https%3A%2F%2Fmimir".to_owned(),
    );
    assert_eq!(endpoint.asked.lock().unwrap()[0], question);

    later(91).await;
    server.take("Bearer token-2");
    assert_eq!((ask().await, endpoint.asked()), (Ok(Answer::default()), 2));

    server.take("Bearer token-3");
    assert_eq!((ask().await, endpoint.asked()), (Err(QueryError::Unauthorized(401)), 2));
    later(5).await;
    assert_eq!((ask().await, endpoint.asked()), (Ok(Answer::default()), 3));
}

#[tokio::test]
async fn why_there_is_no_token_is_said_without_the_answer() {
    let vault = Vault::default();
    vault.put("client", &[("secret", VALUE)]);
    for (status, body, problem) in [
        (
            401,
            r#"{"error":"secret"}"#,
            "it answered HTTP 401: check clientId, clientSecret, scopes and parameters",
        ),
        (200, "<html>secret", "its answer holds no bearer token"),
        (
            302,
            "secret",
            "answered with a redirect (HTTP 302), which is not followed: write the final address",
        ),
    ] {
        let endpoint = endpoint(move |_| (status, body.to_owned())).await;
        let source = MetricSourceSpec {
            authentication: Some(endpoint.authentication()),
            ..source("http://192.0.2.1")
        };
        let error =
            api_of(vault.client(), local()).query(&source, "up[5m]", 0).await.unwrap_err().to_string();
        assert!(error.starts_with("no token from spec.authentication.oauth2.tokenUrl: "), "{error}");
        assert!(error.contains(problem) && !error.contains("secret\""), "{error}");
        assert_eq!(endpoint.asked(), 1);
    }
    let huge = endpoint(|_| (200, " ".repeat(1 << 20))).await;
    let source =
        MetricSourceSpec { authentication: Some(huge.authentication()), ..source("http://192.0.2.1") };
    let error = api_of(vault.client(), local()).query(&source, "up[5m]", 0).await.unwrap_err();
    assert!(error.to_string().ends_with("its answer holds no bearer token"), "{error}");
}

#[tokio::test]
async fn nothing_that_is_hidden_shows_in_a_log() {
    let vault = Vault::default();
    vault.put("all", &[("password", VALUE), ("tls.crt", VALUE), ("tls.key", VALUE)]);
    let api = api_of(vault.client(), local());
    let secret = Header { name: "X-Key".to_owned(), value: None, secret: Some(at("all", "password")) };
    let tls = davylamp_api::source::Tls { client_certificate: Some("all".to_owned()), ..Default::default() };
    let basic = Some(Basic { username: "me".to_owned(), password: at("all", "password") });
    let endpoint =
        endpoint(|_| (200, json!({"access_token": VALUE, "token_type": "Bearer"}).to_string())).await;
    for authentication in [
        Authentication { basic, ..Authentication::default() },
        bearer("all", "password"),
        endpoint.authentication(),
    ] {
        vault.put("client", &[("secret", VALUE)]);
        let source = MetricSourceSpec {
            tls: Some(tls.clone()),
            headers: Some(vec![secret.clone()]),
            authentication: Some(authentication),
            ..source("https://192.0.2.1")
        };
        let pass = api.access.pass(&source, false).await.unwrap();
        let url = Url::parse("http://192.0.2.1").unwrap();
        let plain = MetricSourceSpec { tls: None, ..source.clone() };
        let request = api.access.post(url, &api.access.pass(&plain, false).await.unwrap()).await.unwrap();
        let shown = format!("{api:?} {pass:?} {request:?} {:?}", request.try_clone().unwrap().build());
        assert!(shown.contains("hidden") && shown.contains("Sensitive"), "{shown}");
        // As it is, and as basic authentication has it.
        assert!(!shown.contains(VALUE) && !shown.contains("bWU6"), "{shown}");
    }
}
