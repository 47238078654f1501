//! How a source is asked: by a client that knows the server, with the credentials that its secrets hold.
//!
//! Takes the spec of a source, gives requests that lack only their question. Nothing that a secret holds leaves it but in
//! such a request.

mod clients;
mod kept;
mod network;
mod secrets;
mod tokens;

use std::fmt;

use davylamp_api::MetricSourceSpec;
use davylamp_api::source::{Authority, SecretKey, Tls};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{RequestBuilder, Url};

pub(super) use self::clients::exchange;
use self::clients::{Clients, Trust};
pub(super) use self::network::Addresses;
pub use self::network::{Network, NoNetwork};
pub use self::secrets::SecretError;
use self::secrets::{Hidden, Secrets};
pub use self::tokens::TokenError;
use self::tokens::Tokens;
use super::QueryError;

/// What secrets, tokens and clients are at hand.
pub(super) struct Access {
    secrets: Secrets,
    clients: Clients,
    tokens: Tokens,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

/// What a source wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    trust: Trust,
    authorization: Option<Authorization>,
    headers: HeaderMap,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Authorization {
    Basic { username: String, password: Hidden },
    Bearer(Hidden),
}

impl Access {
    pub(super) fn new(client: Option<kube::Client>, namespace: String, addresses: Addresses) -> Self {
        let (secrets, clients) = (Secrets::new(client, namespace), Clients::new(addresses));
        Self { secrets, clients, tokens: Tokens::default() }
    }

    /// What the source wants to see; `renew` says that it refused the last one.
    pub(super) async fn pass(&self, source: &MetricSourceSpec, renew: bool) -> Result<Pass, QueryError> {
        Ok(Pass {
            trust: self.trust(source.tls.as_ref(), renew).await?,
            authorization: self.authorization(source, renew).await?,
            headers: self.headers(source, renew).await?,
        })
    }

    /// A request to the address, with the pass.
    pub(super) async fn post(&self, url: Url, pass: &Pass) -> Result<RequestBuilder, QueryError> {
        let Pass { trust, authorization, headers } = pass;
        let request = self.clients.post(url, trust).await?.headers(headers.clone());
        Ok(match authorization {
            None => request,
            Some(Authorization::Basic { username, password }) => {
                request.basic_auth(username, Some(password.show()))
            }
            Some(Authorization::Bearer(token)) => request.bearer_auth(token.show()),
        })
    }

    async fn trust(&self, tls: Option<&Tls>, renew: bool) -> Result<Trust, QueryError> {
        let Some(Tls { ca, client_certificate, server_name }) = tls else { return Ok(Trust::default()) };
        let authorities = match ca {
            Some(Authority { secret: Some(secret), .. }) => Some(self.secrets.text(secret, renew).await?),
            Some(Authority { pem, .. }) => pem.clone().map(Hidden::new),
            None => None,
        };
        let identity = match client_certificate {
            Some(name) => {
                let at = |key: &str| SecretKey { name: name.clone(), key: key.to_owned() };
                let certificate = self.secrets.text(&at("tls.crt"), renew).await?;
                let key = self.secrets.text(&at("tls.key"), renew).await?;
                Some(Hidden::new(format!("{}\n{}\n", certificate.show(), key.show())))
            }
            None => None,
        };
        Ok(Trust { authorities, identity, server_name: server_name.clone() })
    }

    async fn authorization(
        &self,
        source: &MetricSourceSpec,
        renew: bool,
    ) -> Result<Option<Authorization>, QueryError> {
        let Some(authentication) = &source.authentication else { return Ok(None) };
        if let Some(basic) = &authentication.basic {
            let password = self.secrets.text(&basic.password, renew).await?;
            return Ok(Some(Authorization::Basic { username: basic.username.clone(), password }));
        }
        if let Some(bearer) = &authentication.bearer {
            let token = self.secrets.text(&bearer.token, renew).await?;
            if HeaderValue::from_str(token.show()).is_err() {
                return Err(self.secrets.error(&bearer.token, NO_HEADER));
            }
            return Ok(Some(Authorization::Bearer(token)));
        }
        if let Some(client) = &authentication.oauth2 {
            let secret = self.secrets.text(&client.client_secret, renew).await?;
            let trust = self.trust(client.tls.as_ref(), renew).await?;
            let timeout = source.limits().timeout();
            let token = self.tokens.token(&self.clients, client, secret, trust, timeout, renew).await?;
            return Ok(Some(Authorization::Bearer(token)));
        }
        Ok(None)
    }

    async fn headers(&self, source: &MetricSourceSpec, renew: bool) -> Result<HeaderMap, QueryError> {
        let mut headers = HeaderMap::new();
        for header in source.headers.iter().flatten() {
            let value = match (&header.secret, &header.value) {
                (Some(secret), _) => {
                    let text = self.secrets.text(secret, renew).await?;
                    let value = HeaderValue::from_str(text.show());
                    let mut value = value.map_err(|_| self.secrets.error(secret, NO_HEADER))?;
                    value.set_sensitive(true);
                    value
                }
                (None, value) => HeaderValue::from_str(value.as_deref().unwrap_or_default())
                    .map_err(|_| QueryError::Header)?,
            };
            headers.insert(header_name(&header.name)?, value);
        }
        if let Some(tenant) = &source.tenant {
            let value = HeaderValue::from_str(&tenant.value).map_err(|_| QueryError::Header)?;
            headers.insert(header_name(tenant.header())?, value);
        }
        Ok(headers)
    }
}

const NO_HEADER: &str = "no header can carry it: it is one line of plain characters";

fn header_name(name: &str) -> Result<HeaderName, QueryError> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| QueryError::Header)
}
