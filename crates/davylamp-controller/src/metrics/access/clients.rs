//! HTTP clients, one for each way to recognise a server and to be recognised: to the address that the admin wrote and no
//! other, so without redirects and proxies, and to allowed addresses only.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HOST;
use reqwest::{Certificate, Client, Identity, RequestBuilder, StatusCode, Url, redirect};

use super::kept::Kept;
use super::network::{Addresses, RefusedAddress, Resolver};
use super::secrets::Hidden;
use crate::metrics::QueryError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// After this the authorities of the system are read anew.
const KEPT: Duration = Duration::from_hours(1);

/// How a server is recognised, and how we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trust {
    /// Certificates of authorities as PEM. None: those of the system.
    pub(super) authorities: Option<Hidden>,
    /// Our certificate and its key as PEM.
    pub(super) identity: Option<Hidden>,
    /// The name in the server's certificate, if it is not the host of the URL.
    pub(super) server_name: Option<String>,
}

/// What a client is made for.
#[derive(PartialEq)]
struct Purpose {
    trust: Trust,
    /// For http, not https.
    plain: bool,
    /// Where the server is, if it has another name in its certificate.
    host: Option<String>,
}

/// Makes clients, and keeps them.
pub(super) struct Clients {
    addresses: Addresses,
    kept: Kept<Purpose, Client>,
}

impl Clients {
    pub(super) fn new(addresses: Addresses) -> Self {
        Self { addresses, kept: Kept::default() }
    }

    /// A request to the address, to be filled and sent.
    pub(super) async fn post(&self, mut url: Url, trust: &Trust) -> Result<RequestBuilder, QueryError> {
        // No resolver is asked for an address. The parser of URLs has written it in the usual way.
        if host(&url).parse().is_ok_and(|address: IpAddr| !self.addresses.allow(address)) {
            return Err(QueryError::RefusedAddress);
        }
        let plain = url.scheme() == "http";
        let Some(name) = &trust.server_name else {
            return Ok(self.client(trust, plain, None).await?.post(url));
        };
        // The name of the certificate stands in the URL, and the resolver knows better.
        let client = self.client(trust, plain, Some(host(&url).to_owned())).await?;
        let asked = url.host_str().unwrap_or_default();
        let asked = url.port().map_or_else(|| asked.to_owned(), |port| format!("{asked}:{port}"));
        if url.set_host(Some(name)).is_err() || host(&url).parse::<IpAddr>().is_ok() {
            return Err(QueryError::Tls("tls.serverName is no name"));
        }
        Ok(client.post(url).header(HOST, asked))
    }

    async fn client(&self, trust: &Trust, plain: bool, host: Option<String>) -> Result<Client, QueryError> {
        let resolver = Resolver { addresses: self.addresses.clone(), host: host.clone() };
        let purpose = Purpose { trust: trust.clone(), plain, host };
        self.kept.get(purpose, false, |_| async { Ok((build(trust, plain, resolver)?, KEPT)) }).await
    }
}

/// Without the brackets of IPv6.
fn host(url: &Url) -> &str {
    url.host_str().unwrap_or_default().trim_matches(['[', ']'])
}

fn build(trust: &Trust, plain: bool, resolver: Resolver) -> Result<Client, QueryError> {
    let Trust { authorities, identity, server_name: _ } = trust;
    let certificates = match authorities {
        Some(authorities) => {
            let certificates = Certificate::from_pem_bundle(authorities.show().as_bytes());
            Some(certificates.ok().filter(|certificates| !certificates.is_empty()).ok_or(NO_AUTHORITY)?)
        }
        // Those of the system are not needed, and an image need not have any.
        None if plain => Some(Vec::new()),
        None => None,
    };
    let resolver = Arc::new(resolver);
    let builder = || {
        let builder = Client::builder()
            .user_agent(concat!("davylamp/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::none())
            // Whatever the environment says.
            .no_proxy()
            .dns_resolver(Arc::clone(&resolver));
        match &certificates {
            Some(certificates) => builder.tls_certs_only(certificates.clone()),
            None => builder,
        }
    };
    let unknown = if authorities.is_some() { NO_AUTHORITY } else { NO_SYSTEM };
    let client = builder().build().map_err(|_| unknown)?;
    let Some(identity) = identity else { return Ok(client) };
    let identity = Identity::from_pem(identity.show().as_bytes()).map_err(|_| NO_IDENTITY)?;
    builder().identity(identity).build().map_err(|_| NO_IDENTITY)
}

const NO_AUTHORITY: QueryError = QueryError::Tls("tls.ca holds no certificate that can be read");
const NO_SYSTEM: QueryError =
    QueryError::Tls("the controller's image knows no authorities: write that of its certificate in tls.ca");
const NO_IDENTITY: QueryError = QueryError::Tls("tls.clientCertificate holds no certificate with its key");

/// Sends the request and reads no more than so many bytes of the answer.
pub(crate) async fn exchange(
    request: RequestBuilder,
    most: usize,
) -> Result<(StatusCode, Vec<u8>), QueryError> {
    let mut response = request.send().await.map_err(|e| broken(&e))?;
    let status = response.status();
    if status.is_redirection() {
        return Err(QueryError::Redirect(status.as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| broken(&e))? {
        if body.len() + chunk.len() > most {
            return Err(QueryError::TooLarge(most));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, body))
}

/// Without the address and the names in a certificate, which are the admin's to know.
fn broken(error: &reqwest::Error) -> QueryError {
    if error.is_timeout() && !error.is_connect() {
        return QueryError::Timeout;
    }
    if error.is_timeout() {
        return QueryError::Unreachable(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()));
    }
    let mut cause: &(dyn Error + 'static) = error;
    loop {
        if cause.is::<RefusedAddress>() {
            return QueryError::RefusedAddress;
        }
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return QueryError::Tls(distrust(tls));
        }
        let deeper = match cause.downcast_ref::<io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => cause.source(),
        };
        let Some(deeper) = deeper else { break };
        cause = deeper;
    }
    // An error without a cause names the address.
    let found = error.source().is_some();
    QueryError::Unreachable(if found { cause.to_string() } else { "the connection failed".to_owned() })
}

fn distrust(error: &rustls::Error) -> &'static str {
    use rustls::CertificateError as Bad;
    if let rustls::Error::InvalidCertificate(bad) = error {
        // The signature is bad where another authority has the same name.
        return if matches!(bad, Bad::UnknownIssuer | Bad::BadSignature) {
            "its certificate is signed by an unknown authority: write that one in tls.ca"
        } else if matches!(bad, Bad::NotValidForName | Bad::NotValidForNameContext { .. }) {
            "its certificate is for another name: write that one in tls.serverName"
        } else if matches!(bad, Bad::Expired | Bad::ExpiredContext { .. }) {
            "its certificate has expired"
        } else {
            "its certificate is not valid"
        };
    }
    if matches!(error, rustls::Error::AlertReceived(_)) {
        "it breaks off: does it want a certificate, in tls.clientCertificate?"
    } else {
        "the two do not understand each other: is that the port of https?"
    }
}
