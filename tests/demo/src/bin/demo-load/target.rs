//! Where the load goes: an address of the machine itself or of its private networks, given as such. Names other
//! than `localhost` are refused, so that no resolver decides where requests end up.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use hyper::Uri;
use hyper::http::uri::{PathAndQuery, Scheme};

/// A URL that may be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// The path and query of each request.
    pub(crate) path: PathAndQuery,
    /// What the URL calls the host, with the port.
    pub(crate) authority: String,
}

/// Why a URL is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("not a URL")]
    Invalid(#[from] hyper::http::uri::InvalidUri),
    #[error("only plain http:// is spoken")]
    Scheme,
    #[error("write the host as an IP address or as localhost, not as `{0}`")]
    Name(String),
    #[error("{0} is neither loopback nor private (RFC 1918): only what runs on this machine may be loaded")]
    Foreign(IpAddr),
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let url: Uri = text.parse()?;
        let (Some(scheme), Some(authority)) = (url.scheme(), url.authority()) else {
            return Err(TargetError::Scheme);
        };
        if *scheme != Scheme::HTTP {
            return Err(TargetError::Scheme);
        }
        let ip = match authority.host() {
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            host => host
                .trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .map_err(|_| TargetError::Name(host.to_owned()))?
                .to_canonical(),
        };
        if !is_near(ip) {
            return Err(TargetError::Foreign(ip));
        }
        Ok(Self {
            address: SocketAddr::new(ip, authority.port_u16().unwrap_or(80)),
            path: url.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
            authority: authority.as_str().to_owned(),
        })
    }
}

fn is_near(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private(),
        IpAddr::V6(ip) => ip.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_address_is_taken() {
        for (url, address, path) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080", "/"),
            ("http://localhost/a?b=c", "127.0.0.1:80", "/a?b=c"),
            ("http://[::1]:81/", "[::1]:81", "/"),
            ("http://10.244.1.7:8080/", "10.244.1.7:8080", "/"),
            ("http://172.31.0.1/", "172.31.0.1:80", "/"),
            ("http://192.168.1.1/", "192.168.1.1:80", "/"),
        ] {
            let target: Target = url.parse().unwrap();
            assert_eq!((target.address, target.path.as_str()), (address.parse().unwrap(), path), "{url}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for (url, reason) in [
            ("http://192.0.2.1/", "neither loopback nor private"),
            ("http://172.32.0.1/", "neither loopback nor private"),
            ("http://0.0.0.0/", "neither loopback nor private"),
            ("http://169.254.169.254/", "neither loopback nor private"),
            ("http://[2001:db8::1]/", "neither loopback nor private"),
            ("http://[::ffff:192.0.2.1]/", "neither loopback nor private"),
            ("http://shop.example/", "IP address"),
            ("http://127.0.0.1@192.0.2.1/", "neither loopback nor private"),
            ("https://127.0.0.1/", "http://"),
            ("127.0.0.1:80", "http://"),
            ("http://", "URL"),
        ] {
            let error = url.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
