//! Tokens for client credentials: OAuth 2.0, RFC 6749, section 4.4. A token is kept until shortly before its end.

use std::time::Duration;

use davylamp_api::source::OAuth2;
use reqwest::header::HeaderValue;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::clients::{Clients, Trust, exchange};
use super::kept::Kept;
use super::secrets::Hidden;
use crate::metrics::QueryError;

/// An answer with a token is not longer than this.
const LARGEST_BODY: usize = 64 << 10;
/// A token that does not say when it ends is kept for so long.
const UNSAID: Duration = Duration::from_mins(1);
const LONGEST: Duration = Duration::from_hours(24);
/// So long before its end, or after nine tenths of its life, it is replaced.
const BEFORE_END: Duration = Duration::from_secs(30);

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// The address is none.
    #[error("it is no http or https address")]
    Address,
    /// The endpoint does not answer.
    #[error(transparent)]
    Connection(Box<QueryError>),
    /// It says no.
    #[error("it answered HTTP {0}: check clientId, clientSecret, scopes and parameters")]
    Http(u16),
    /// It says something else.
    #[error("its answer holds no bearer token")]
    NotToken,
}

/// What a token is for.
#[derive(PartialEq)]
struct Purpose {
    client: OAuth2,
    secret: Hidden,
    trust: Trust,
}

/// Gets tokens, and keeps them.
#[derive(Default)]
pub(super) struct Tokens {
    kept: Kept<Purpose, Hidden>,
}

impl Tokens {
    /// A token; `renew` says that the last one was refused.
    pub(super) async fn token(
        &self,
        clients: &Clients,
        client: &OAuth2,
        secret: Hidden,
        trust: Trust,
        timeout: Duration,
        renew: bool,
    ) -> Result<Hidden, QueryError> {
        let purpose = Purpose { client: client.clone(), secret: secret.clone(), trust: trust.clone() };
        let ask = |_| async move {
            let url = Url::parse(&client.token_url).map_err(|_| TokenError::Address)?;
            let request = clients.post(url, &trust).await.map_err(connection)?;
            let (id, secret) = (form_encoded(&client.client_id), form_encoded(secret.show()));
            let mut form = vec![("grant_type", "client_credentials".to_owned())];
            form.extend(client.scopes.as_ref().map(|scopes| ("scope", scopes.join(" "))));
            form.extend(client.parameters.iter().flatten().map(|(key, value)| (key.as_str(), value.clone())));
            let request = request.basic_auth(id, Some(secret)).form(&form).timeout(timeout);
            let (status, body) = exchange(request, LARGEST_BODY).await.map_err(connection)?;
            Ok::<_, QueryError>(token(status, &body)?)
        };
        self.kept.get(purpose, renew, ask).await
    }
}

fn connection(error: QueryError) -> TokenError {
    if matches!(error, QueryError::TooLarge(_)) {
        return TokenError::NotToken;
    }
    TokenError::Connection(Box::new(error))
}

/// As RFC 6749, section 2.3.1, wants it inside of HTTP basic authentication.
fn form_encoded(text: &str) -> String {
    let Ok(mut url) = Url::parse("http://x") else { return text.to_owned() };
    url.query_pairs_mut().append_key_only(text);
    url.query().unwrap_or_default().to_owned()
}

/// The token, and for how long it is good.
fn token(status: StatusCode, body: &[u8]) -> Result<(Hidden, Duration), TokenError> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
        token_type: String,
        expires_in: Option<Value>,
    }
    if !status.is_success() {
        return Err(TokenError::Http(status.as_u16()));
    }
    let Answer { access_token, token_type, expires_in } =
        serde_json::from_slice(body).map_err(|_| TokenError::NotToken)?;
    let sendable = !access_token.is_empty() && HeaderValue::from_str(&access_token).is_ok();
    if !token_type.eq_ignore_ascii_case("bearer") || !sendable {
        return Err(TokenError::NotToken);
    }
    // Some write the number as a text.
    let seconds = expires_in.and_then(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()));
    let life = seconds.map_or(UNSAID, Duration::from_secs).min(LONGEST);
    Ok((Hidden::new(access_token), life.saturating_sub(BEFORE_END.min(life / 10))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good_for(expires_in: &str) -> u64 {
        let body = format!(r#"{{"access_token":"t","token_type":"Bearer"{expires_in}}}"#);
        token(StatusCode::OK, body.as_bytes()).unwrap().1.as_secs()
    }

    #[test]
    fn a_token_is_kept_until_shortly_before_its_end() {
        assert_eq!(good_for(r#","expires_in":3600"#), 3_570);
        assert_eq!(good_for(r#","expires_in":"100""#), 90);
        assert_eq!(good_for(r#","expires_in":0"#), 0);
        assert_eq!(good_for(""), 54);
        assert_eq!(good_for(r#","expires_in":18446744073709551615"#), 86_370);
        assert_eq!(good_for(r#","expires_in":-1"#), 54);
    }

    #[test]
    fn what_is_no_token_is_not_taken_for_one() {
        for body in [
            "",
            "<html>",
            "{}",
            r#"{"access_token":"","token_type":"bearer"}"#,
            r#"{"access_token":"t","token_type":"mac"}"#,
            r#"{"access_token":"a\nb","token_type":"bearer"}"#,
        ] {
            assert_eq!(token(StatusCode::OK, body.as_bytes()), Err(TokenError::NotToken), "{body}");
        }
        let refused = token(StatusCode::UNAUTHORIZED, br#"{"error":"invalid_client"}"#);
        assert_eq!(refused, Err(TokenError::Http(401)));
    }

    #[test]
    fn names_and_secrets_of_clients_are_encoded() {
        assert_eq!(form_encoded("a b:c%&=+/é"), "a+b%3Ac%25%26%3D%2B%2F%C3%A9");
        assert_eq!(form_encoded(""), "");
    }
}
