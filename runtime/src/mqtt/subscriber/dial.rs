//! Where the broker is and how to get a byte stream to it, plain or TLS.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rumqttc_v4::TlsConfiguration;
use rumqttc_v4::tokio_rustls::TlsConnector;
use rumqttc_v4::tokio_rustls::rustls::crypto::ring::default_provider;
use rumqttc_v4::tokio_rustls::rustls::pki_types::pem::PemObject;
use rumqttc_v4::tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use rumqttc_v4::tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use url::Url;

use crate::source::SourceError;

/// A byte stream, whatever is below it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A checked address.
pub(super) struct Target {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Target {
    /// Checks the URL and prepares TLS.
    pub(super) fn new(text: &str, ca_file: Option<&Path>) -> Result<Self, SourceError> {
        let bad = |text: String| SourceError::Config(text);
        let url = Url::parse(text).map_err(|error| bad(format!("`url`: {error}")))?;
        let tls = match url.scheme() {
            "mqtt" => false,
            "mqtts" => true,
            other => return Err(bad(format!("`url` begins with {other}://, not mqtt(s)://"))),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("`url` must not hold credentials: use `user`, `password`".to_owned()));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(bad("`url` has more than a host and a port".to_owned()));
        }
        let host = url.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(bad("`url` names no host".to_owned()));
        }
        let port = url.port().unwrap_or(if tls { 8883 } else { 1883 });
        let tls = match tls {
            true => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|error| bad(format!("`url`: {error}")))?;
                Some((TlsConnector::from(tls_config(ca_file)?), name))
            }
            false => None,
        };
        Ok(Self { host, port, tls })
    }

    /// Connects.
    pub(super) async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::new(tcp)),
            Some((tls, name)) => Ok(Box::new(tls.connect(name.clone(), tcp).await?)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

fn tls_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, SourceError> {
    let Some(path) = ca_file else {
        return match TlsConfiguration::try_default_rustls() {
            Ok(TlsConfiguration::Rustls(config)) => Ok(config),
            Ok(_) => Err(SourceError::Config("the system's certificates: none".to_owned())),
            Err(e) => Err(SourceError::Config(format!("the system's certificates: {e}"))),
        };
    };
    let what = format!("`ca_file` {}", path.display());
    let pem = std::fs::read(path).map_err(|error| SourceError::Io { what: what.clone(), error })?;
    let bad = |text: String| SourceError::Config(format!("{what}: {text}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        roots.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
