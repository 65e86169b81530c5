//! What can be known of a webhook before anything is sent: whether its address is one that is only
//! reached where that is allowed, and what key its secret is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use url::{Host, Url};

/// What a secret by Standard Webhooks begins with; base64 of the key follows.
pub const SECRET_PREFIX: &str = "whsec_";

/// The key of a secret: what `whsec_` and base64 say, else its text as it stands.
///
/// # Errors
/// It is empty, or no base64.
pub fn signing_key(secret: &str) -> Result<Vec<u8>, &'static str> {
    let bytes = match secret.strip_prefix(SECRET_PREFIX) {
        Some(text) => BASE64.decode(text).map_err(|_| "what follows whsec_ is not valid base64")?,
        None => secret.as_bytes().to_vec(),
    };
    if bytes.is_empty() {
        return Err("the secret is empty");
    }
    Ok(bytes)
}

/// The host of a URL, if it is itself an address that is not on the public internet.
pub fn private_host(url: &Url) -> Option<String> {
    let is_private = match url.host()? {
        Host::Ipv4(ip) => !is_public(IpAddr::V4(ip)),
        Host::Ipv6(ip) => !is_public(IpAddr::V6(ip)),
        Host::Domain(name) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    };
    url.host_str().filter(|_| is_private).map(str::to_owned)
}

/// Whether an address belongs to the public internet.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b)) // carrier-grade NAT
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b)); // benchmarking
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // Mapped and NAT64 addresses reach what their last four bytes say.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        [0x64, 0xff9b, ..] | [0x2001, 0..0x200, ..] | [0x2001, 0xdb8, ..] => false,
        // Everything that is global unicast today lies in 2000::/3.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Plan;

    fn plan(url: &str, secret: &str, more: &str) -> Result<Plan, String> {
        load(&format!("url = \"${{env:URL}}\"\n{more}"), (url, secret))
    }

    fn load(more: &str, (url, secret): (&str, &str)) -> Result<Plan, String> {
        let text = format!(
            "name = \"p\"\n[source]\ntype = \"endpoint\"\ntopics = [\"{{device}}\"]\n\
             [reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\nfields = {{ v = \"float64\" }}\n\
             [[alert]]\nname = \"a\"\nfrom = \"readings\"\nfire = \"v > 1\"\nnotify = [\"ops\"]\n\
             [notify.ops]\ntype = \"webhook\"\n\
             secret = \"${{env:SECRET}}\"\n{more}"
        );
        let resolve = |_: &str, name: &str| {
            Ok(if name == "URL" { url.to_owned() } else { secret.to_owned() })
        };
        let problems = |all: Vec<crate::Problem>| all.iter().map(ToString::to_string).collect();
        crate::load(&[("p.toml".into(), text)], &resolve).map_err(problems)
    }

    fn warned(url: &str, secret: &str, more: &str) -> String {
        let plan = plan(url, secret, more).unwrap();
        plan.warnings.iter().map(ToString::to_string).collect()
    }

    const GOOD: &str = "whsec_bXkgc2VjcmV0IGtleQ==";

    #[test]
    fn an_address_that_is_never_reached_is_told() {
        let urls =
            ["http://127.0.0.1:9/canary", "http://[::1]/canary", "http://localhost:80/canary"];
        for url in urls {
            let said = warned(url, GOOD, "");
            assert!(
                said.contains("`allow_private = true`") && said.contains("${env:URL}"),
                "{said}"
            );
            assert!(!said.contains("canary"), "{said}");
            assert_eq!(warned(url, GOOD, "allow_private = true\n"), "");
        }
        let literal = load("url = \"http://10.0.0.1/canary\"\n", ("", GOOD)).unwrap();
        let said = literal.warnings[0].to_string();
        assert!(said.contains("sent to 10.0.0.1") && !said.contains("canary"), "{said}");
        for url in ["https://hooks.example/x", crate::config::references::UNSET, "http://8.8.8.8/"]
        {
            assert_eq!(warned(url, GOOD, ""), "", "{url}");
        }
    }

    #[test]
    fn a_secret_that_receivers_cannot_use_is_told() {
        let url = "https://hooks.example/x";
        let make = "echo \"whsec_$(openssl rand -base64 32)\"";
        let said = warned(url, "canary", "");
        assert!(said.contains("does not begin with `whsec_`") && said.contains(make), "{said}");
        assert!(!said.contains("canary"), "{said}");
        assert_eq!(signing_key("canary"), Ok(b"canary".to_vec()));
        for secret in ["whsec_!canary", "whsec_", ""] {
            let said = plan(url, secret, "").unwrap_err();
            assert!(said.contains(make) && said.contains("p.toml:"), "{secret}: {said}");
            assert!(!said.contains("canary"), "{said}");
        }
        assert_eq!(warned(url, crate::config::references::UNSET, ""), "");
    }
}
