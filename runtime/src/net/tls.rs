//! TLS 1.2 and 1.3, both ends. The files behind it are read again when they change, so that a new
//! certificate or revocation list needs no restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rumqttc_v4::TlsConfiguration;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName,
};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Stream;
use super::watched::{Watched, read};
use crate::clock::Clock;
use crate::source::SourceError;

/// Longest PEM file. A list that revokes 100,000 certificates has about 5 MB.
const PEM_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Names that are taken out of a client's certificate. Real ones have one or two; the rest is left.
const NAMES_MAX: usize = 16;

/// What devices must show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not asked for a certificate.
    #[default]
    None,
    /// They may show one; a bad one is refused.
    Optional,
    /// They must show one.
    Required,
}

/// Files and rules of a TLS listener.
#[derive(Clone, Debug)]
pub struct ServerTlsConfig {
    /// Our certificate and those between it and the root, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Who signs the certificates of devices, PEM.
    pub client_ca: Option<PathBuf>,
    /// Lists of revoked certificates, PEM.
    pub crl: Vec<PathBuf>,
    /// What devices must show.
    pub client_certificates: ClientCertificates,
}

/// The names in a certificate that was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CertificateName {
    /// Common name; none if there are several, because nobody could tell which one counts.
    pub(crate) cn: Option<String>,
    /// Alternative names (DNS, URI, e-mail), in their order.
    pub(crate) sans: Vec<String>,
}

/// The side that accepts.
pub(crate) struct ServerTls {
    current: Watched<TlsAcceptor>,
}

impl ServerTls {
    /// Reads the files; `alpn` is the protocol that clients may ask for.
    ///
    /// # Errors
    /// [`SourceError`] with the file and what is wrong with it.
    pub(crate) fn new(config: ServerTlsConfig, alpn: &'static [u8]) -> Result<Self, SourceError> {
        let mut paths = vec![config.cert.clone(), config.key.clone()];
        paths.extend(config.client_ca.clone());
        paths.extend(config.crl.iter().cloned());
        let load = move || Ok(TlsAcceptor::from(Arc::new(server_config(&config, alpn)?)));
        Ok(Self { current: Watched::new(paths, load)? })
    }

    /// The handshake. It takes as long as the other side likes: the caller limits its time.
    ///
    /// # Errors
    /// The other side is gone, speaks no TLS, or its certificate is missing or refused.
    pub(crate) async fn accept<S: Stream>(
        &self,
        stream: S,
    ) -> io::Result<(server::TlsStream<S>, Option<CertificateName>)> {
        let stream = self.current.get().accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let name = shown.map(|certificate| name_of(certificate)).transpose()?;
        Ok((stream, name))
    }
}

fn name_of(certificate: &[u8]) -> io::Result<CertificateName> {
    let bad = |_| io::Error::new(io::ErrorKind::InvalidData, "the certificate cannot be read");
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(bad)?;
    let mut names = certificate.subject().iter_common_name().map(|cn| cn.as_str());
    let cn = match (names.next(), names.next()) {
        (Some(Ok(cn)), None) => Some(cn.to_owned()),
        _ => None,
    };
    let extension = certificate.subject_alternative_name();
    let extension = extension.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let all = extension.iter().flat_map(|names| &names.value.general_names);
    let sans = all.filter_map(|name| match name {
        GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) => {
            Some((*text).to_owned())
        }
        _ => None,
    });
    Ok(CertificateName { cn, sans: sans.take(NAMES_MAX).collect() })
}

fn server_config(config: &ServerTlsConfig, alpn: &[u8]) -> Result<ServerConfig, SourceError> {
    let provider = Arc::new(default_provider());
    let chain = certificates("cert", &config.cert)?;
    let key = private_key("key", &config.key)?;
    let bad = |error: rustls::Error| {
        let files = format!("{} and {}", config.cert.display(), config.key.display());
        SourceError::Config(format!("`cert` and `key` {files}: {error}"))
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(bad)?;
    let mut out = match verifier(config, provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    }
    .with_single_cert(chain, key)
    .map_err(bad)?;
    if config.client_certificates != ClientCertificates::None {
        // A resumed session would not be held against the revocation list, nor expire.
        out.session_storage = Arc::new(NoServerSessionStorage {});
        out.send_tls13_tickets = 0;
    }
    out.alpn_protocols = vec![alpn.to_vec()];
    Ok(out)
}

fn verifier(
    config: &ServerTlsConfig,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, SourceError> {
    let Some(path) = &config.client_ca else {
        return match config.client_certificates {
            ClientCertificates::None => Ok(None),
            _ => Err(SourceError::Config(
                "certificates of devices need `client_ca`: who signs them".to_owned(),
            )),
        };
    };
    if config.client_certificates == ClientCertificates::None {
        return Ok(None);
    }
    let roots = Arc::new(roots("client_ca", path)?);
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
    for path in &config.crl {
        builder = builder.with_crls(revocations(path)?);
    }
    if config.client_certificates == ClientCertificates::Optional {
        builder = builder.allow_unauthenticated();
    }
    let built = builder.build();
    built.map(Some).map_err(|e| SourceError::Config(format!("`client_ca`, `crl`: {e}")))
}

fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, SourceError> {
    let pem = read("crl", path, PEM_BYTES_MAX)?;
    let bad = |text: String| SourceError::Config(format!("`crl` {}: {text}", path.display()));
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&pem).collect();
    let lists = lists.map_err(|error| bad(error.to_string()))?;
    if lists.is_empty() {
        return Err(bad("no revocation list (PEM) in it".to_owned()));
    }
    let now_s = Clock::system().now_us() / 1_000_000;
    for list in &lists {
        let (_, parsed) = x509_parser::parse_x509_crl(list).map_err(|e| bad(e.to_string()))?;
        if parsed.next_update().is_some_and(|next| next.timestamp() < now_s) {
            // Refusing all devices because somebody forgot to renew a list would be worse.
            tracing::warn!("`crl` {} should have been renewed; it is still used", path.display());
        }
    }
    Ok(lists)
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let pem = read(key, path, PEM_BYTES_MAX)?;
    let bad = |text: String| SourceError::Config(format!("`{key}` {}: {text}", path.display()));
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|error| bad(error.to_string()))?;
    if all.is_empty() {
        return Err(bad("no certificate (PEM) in it".to_owned()));
    }
    Ok(all)
}

fn private_key(key: &str, path: &Path) -> Result<PrivateKeyDer<'static>, SourceError> {
    let pem = read(key, path, PEM_BYTES_MAX)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        SourceError::Config(format!("`{key}` {}: no private key (PEM): {error}", path.display()))
    })
}

fn roots(key: &str, path: &Path) -> Result<RootCertStore, SourceError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(key, path)? {
        roots
            .add(certificate)
            .map_err(|error| SourceError::Config(format!("`{key}` {}: {error}", path.display())))?;
    }
    Ok(roots)
}

/// The side that connects.
pub(crate) struct ClientTls {
    current: Watched<TlsConnector>,
    name: ServerName<'static>,
}

impl ClientTls {
    /// Reads the files. Without `ca_file` the system's certificates are trusted; `cert_file` and
    /// `key_file` (both or none) show who we are; `server_name` is who must answer.
    ///
    /// # Errors
    /// [`SourceError`] with the file and what is wrong with it.
    pub(crate) fn new(
        ca_file: Option<&Path>,
        cert_file: Option<&Path>,
        key_file: Option<&Path>,
        server_name: &str,
    ) -> Result<Self, SourceError> {
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|error| SourceError::Config(format!("`{server_name}`: {error}")))?;
        let own = match (cert_file, key_file) {
            (Some(cert), Some(key)) => Some((cert.to_owned(), key.to_owned())),
            (None, None) => None,
            _ => {
                let text = "`cert_file` and `key_file` go together".to_owned();
                return Err(SourceError::Config(text));
            }
        };
        let ca_file = ca_file.map(Path::to_owned);
        let mut paths: Vec<PathBuf> = ca_file.iter().cloned().collect();
        paths.extend(own.iter().flat_map(|(cert, key)| [cert.clone(), key.clone()]));
        let load = move || {
            let mut config = client_config(ca_file.as_deref())?;
            if let Some((cert, key)) = &own {
                config.client_auth_cert_resolver = own_certificate(cert, key)?;
            }
            Ok(TlsConnector::from(Arc::new(config)))
        };
        Ok(Self { current: Watched::new(paths, load)?, name })
    }

    /// The handshake. It takes as long as the other side likes: the caller limits its time.
    ///
    /// # Errors
    /// The other side is gone, or is not who it should be.
    pub(crate) async fn connect<S: Stream>(&self, stream: S) -> io::Result<client::TlsStream<S>> {
        self.current.get().connect(self.name.clone(), stream).await
    }
}

fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, SourceError> {
    let Some(path) = ca_file else {
        return match TlsConfiguration::try_default_rustls() {
            Ok(TlsConfiguration::Rustls(config)) => Ok(ClientConfig::clone(&config)),
            Ok(_) => Err(SourceError::Config("the system's certificates: none".to_owned())),
            Err(e) => Err(SourceError::Config(format!("the system's certificates: {e}"))),
        };
    };
    let roots = roots("ca_file", path)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| SourceError::Config(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn own_certificate(cert: &Path, key: &Path) -> Result<Arc<dyn ResolvesClientCert>, SourceError> {
    let chain = certificates("cert_file", cert)?;
    let own = CertifiedKey::from_der(chain, private_key("key_file", key)?, &default_provider());
    let own = own.map_err(|error| {
        let files = format!("{} and {}", cert.display(), key.display());
        SourceError::Config(format!("`cert_file` and `key_file` {files}: {error}"))
    })?;
    Ok(Arc::new(SingleCertAndKey::from(own)))
}

#[cfg(test)]
pub(crate) mod tests;
