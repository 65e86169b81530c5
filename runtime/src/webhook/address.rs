//! Which addresses a webhook may reach, and a resolver that hands out no other.
//!
//! Invariant: unless private targets are allowed, a connection is only made to an address that was
//! checked: literal addresses before the request, names by the resolver that the connection itself
//! uses. There is no second look-up that could give another answer.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tidegate_pipelines::webhook::is_public;

/// A target whose address is not on the public internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) IpAddr);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the address {} is private or special; allow_private = true permits it", self.0)
    }
}

impl Error for Refused {}

/// Resolves names for requests; refuses a name if any of its addresses is refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    pub(super) allow_private: bool,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let refused = found.iter().map(SocketAddr::ip).find(|ip| !is_public(*ip));
            if let (Some(ip), false) = (refused, allow_private) {
                return Err(Box::new(Refused(ip)) as Box<dyn Error + Send + Sync>);
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_public_internet_passes() {
        let private = "127.0.0.1 127.9.9.9 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 \
            192.168.1.1 169.254.169.254 100.64.0.1 100.127.0.1 192.0.0.8 198.18.0.1 224.0.0.1 \
            239.1.1.1 240.0.0.1 255.255.255.255 192.0.2.1 ::1 :: ::ffff:10.0.0.1 ::ffff:127.0.0.1 \
            fe80::1 fc00::1 fd12::1 ff02::1 64:ff9b::a00:1 2002:7f00:1:: 2001:db8::1 ::127.0.0.1 \
            fec0::1 2001::1";
        for ip in private.split_whitespace() {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }
}
