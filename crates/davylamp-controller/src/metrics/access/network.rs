//! Which addresses may be connected to: a metric source is written by an admin, but asked from where the controller stands,
//! and there some addresses lead to what nobody meant.
//!
//! [`Resolver`] gives a connection the very addresses that were checked, so no other answer of a name server can come in
//! between. It is not asked for addresses that stand in a URL: those are checked by [`Addresses::allow`].

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use thiserror::Error;

/// A range of addresses, like `127.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Not one of them is where metrics are kept.
const REFUSED: [Network; 20] = [
    // This host, in several words.
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    // Link-local, and with it the metadata of most clouds; what the others use for that.
    v4([169, 254, 0, 0], 16),
    v4([100, 100, 100, 200], 32),
    v4([168, 63, 129, 16], 32),
    v4([192, 0, 0, 0], 24),
    // Multicast, reserved, broadcast.
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
    // This host again, and IPv4 in five ways that no name server has a reason to give.
    v6(0, 96),
    v6(0xffff << 32, 96),
    v6(0xffff << 48, 96),
    v6(0x2001 << 112, 32),
    v6(0x2002 << 112, 16),
    v6(0x0064_ff9b_0001 << 80, 48),
    // Link-local, site-local, multicast.
    v6(0xfe80 << 112, 10),
    v6(0xfec0 << 112, 10),
    v6(0xff00 << 112, 8),
    // Metadata of clouds.
    v6(0xfd00_0ec2 << 96, 32),
    v6((0xfd20_00ce << 96) | 0x254, 128),
    v6((0xfd00_0042 << 96) | 0x42, 128),
];

/// IPv4 behind a translator, which may be the only way out of a cluster: what counts is the address inside.
const TRANSLATED: Network = v6(0x0064_ff9b << 96, 96);

const fn v4(address: [u8; 4], prefix: u8) -> Network {
    let [a, b, c, d] = address;
    Network { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
}

const fn v6(address: u128, prefix: u8) -> Network {
    Network { address: IpAddr::V6(Ipv6Addr::from_bits(address)), prefix }
}

impl Network {
    /// All addresses.
    pub(crate) const ALL: [Self; 2] = [v4([0, 0, 0, 0], 0), v6(0, 0)];

    fn contains(&self, address: IpAddr) -> bool {
        let prefix = u32::from(self.prefix);
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(address)) => {
                let head = |address: Ipv4Addr| address.to_bits().checked_shr(32 - prefix);
                head(ours) == head(address)
            }
            (IpAddr::V6(ours), IpAddr::V6(address)) => {
                let head = |address: Ipv6Addr| address.to_bits().checked_shr(128 - prefix);
                head(ours) == head(address)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// A text that is no [`Network`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no range of addresses: write one like 127.0.0.0/8 or ::1/128")]
pub struct NoNetwork(String);

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let refused = || NoNetwork(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(refused)?;
        let address: IpAddr = address.parse().map_err(|_| refused())?;
        let prefix: u8 = prefix.parse().map_err(|_| refused())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest { Err(refused()) } else { Ok(Self { address, prefix }) }
    }
}

type Lookup = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

/// Finds addresses by name, and allows some.
#[derive(Clone)]
pub(crate) struct Addresses {
    listed: Arc<[Network]>,
    lookup: Arc<Lookup>,
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses").field("listed", &self.listed).finish_non_exhaustive()
    }
}

impl Addresses {
    /// As the system finds them; of those that are refused, the `listed` are allowed.
    pub(crate) fn of_system(listed: Vec<Network>) -> Self {
        Self::found_by(listed, |host| {
            Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.collect()) })
        })
    }

    pub(crate) fn found_by(
        listed: Vec<Network>,
        lookup: impl Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static,
    ) -> Self {
        Self { listed: listed.into(), lookup: Arc::new(lookup) }
    }

    /// Whether the address may be connected to.
    pub(crate) fn allow(&self, address: IpAddr) -> bool {
        self.listed.iter().any(|network| network.contains(address)) || !refused(address)
    }
}

fn refused(address: IpAddr) -> bool {
    let inside = match address {
        IpAddr::V6(v6) if TRANSLATED.contains(address) => {
            let [.., a, b, c, d] = v6.octets();
            IpAddr::from([a, b, c, d])
        }
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    };
    REFUSED.iter().any(|network| network.contains(inside))
}

/// A name has addresses, and none of them is allowed.
#[derive(Debug, Error)]
#[error("the address is refused")]
pub(crate) struct RefusedAddress;

/// Gives the allowed addresses of a name.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) addresses: Addresses,
    /// Where the server is, when the name that is asked for is only that of its certificate.
    pub(crate) host: Option<String>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let addresses = self.addresses.clone();
        let host = self.host.clone().unwrap_or_else(|| name.as_str().to_owned());
        Box::pin(async move {
            let mut found = (addresses.lookup)(host).await?;
            let none = found.is_empty();
            found.retain(|address| addresses.allow(address.ip()));
            if found.is_empty() && !none {
                return Err(RefusedAddress.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(listed: &[&str], address: &str) -> bool {
        let listed = listed.iter().map(|text| text.parse().unwrap()).collect();
        Addresses::of_system(listed).allow(address.parse().unwrap())
    }

    #[test]
    fn what_leads_to_nobodys_metrics_is_refused() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "169.254.170.2",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:0:127.0.0.1",
            "2002:7f00:1::",
            "2001::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fd00:42::42",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::127.0.0.1",
        ] {
            assert!(!allows(&[], address), "{address}");
        }
    }

    #[test]
    fn where_metrics_are_kept_is_allowed() {
        for address in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "192.0.2.1",
            "100.64.0.1",
            "126.255.255.255",
            "128.0.0.1",
            "8.8.8.8",
            "fd00::1",
            "2001:db8::1",
            "64:ff9b::8.8.8.8",
        ] {
            assert!(allows(&[], address), "{address}");
        }
    }

    #[test]
    fn what_is_listed_is_allowed() {
        assert!(allows(&["127.0.0.0/8"], "127.0.0.1") && allows(&["0.0.0.0/0"], "169.254.169.254"));
        assert!(allows(&["::1/128"], "::1") && allows(&["::/0"], "fe80::1"));
        assert!(!allows(&["127.0.0.1/32", "0.0.0.0/0"], "::1") && !allows(&["127.0.0.1/32"], "127.0.0.2"));
        assert!(!allows(&["127.0.0.0/8"], "::ffff:127.0.0.1"));
    }

    #[test]
    fn a_range_is_written_with_its_length() {
        for text in ["127.0.0.1", "127.0.0.1/33", "::1/129", "localhost/8", "127.0.0.1/", "/8", "1/8"] {
            let error = text.parse::<Network>().unwrap_err().to_string();
            assert!(error.ends_with("write one like 127.0.0.0/8 or ::1/128"), "{error}");
        }
    }
}
