//! Handshakes with certificates that are made here, one for each thing that can be wrong.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::{Instant, sleep};

use super::*;

/// Somebody who signs certificates.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// What is asked of a [`Ca`].
#[derive(Clone, Copy, Default)]
pub(crate) struct Wish<'a> {
    pub(crate) cn: &'a str,
    pub(crate) dns: &'a [&'a str],
    pub(crate) serial: u64,
    pub(crate) expired: bool,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key.
    pub(crate) fn issue(&self, wish: Wish<'_>) -> (String, String) {
        let names: Vec<SanType> =
            wish.dns.iter().map(|n| SanType::DnsName((*n).try_into().unwrap())).collect();
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        if !wish.cn.is_empty() {
            params.distinguished_name.push(DnType::CommonName, wish.cn);
        }
        params.subject_alt_names = names;
        params.serial_number = Some(SerialNumber::from(wish.serial));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if wish.expired {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// The list of revoked serial numbers.
    pub(crate) fn revoke(&self, serials: &[u64]) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// A folder with a server's files.
pub(crate) struct Files(pub(crate) TempDir);

impl Files {
    /// A certificate for `localhost`, and `ca` as the signer of devices.
    pub(crate) fn new(ca: &Ca) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.serve(ca, "localhost");
        files.put("ca.pem", &ca.pem);
        files
    }

    pub(crate) fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Another certificate for the server.
    fn serve(&self, ca: &Ca, host: &str) {
        let (cert, key) = ca.issue(Wish { dns: &[host], serial: 1, ..Wish::default() });
        self.put("cert.pem", &cert);
        self.put("key.pem", &key);
    }

    pub(crate) fn config(&self, client_certificates: ClientCertificates) -> ServerTlsConfig {
        ServerTlsConfig {
            cert: self.0.path().join("cert.pem"),
            key: self.0.path().join("key.pem"),
            client_ca: Some(self.0.path().join("ca.pem")),
            crl: vec![],
            client_certificates,
        }
    }

    /// A client that trusts `ca` and shows what is wished.
    pub(crate) fn client(&self, trusts: &Ca, shows: Option<(&Ca, Wish<'_>)>) -> ClientTls {
        let trusts = self.put("trusts.pem", &trusts.pem);
        let own = shows.map(|(ca, wish)| {
            let (cert, key) = ca.issue(wish);
            (self.put("own-cert.pem", &cert), self.put("own-key.pem", &key))
        });
        let (cert, key) = own.as_ref().map(|(c, k)| (c.as_path(), k.as_path())).unzip();
        ClientTls::new(Some(&trusts), cert, key, "localhost").unwrap()
    }
}

/// Both handshakes and one byte each way; what the server learned.
async fn shake(server: &ServerTls, client: &ClientTls) -> io::Result<Option<CertificateName>> {
    let (near, far) = duplex(1 << 16);
    let connecting = async {
        let mut stream = client.connect(far).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        stream.read_u8().await
    };
    let accepting = async {
        let (mut stream, name) = server.accept(near).await?;
        stream.read_u8().await?;
        stream.write_all(b"y").await?;
        stream.flush().await?;
        io::Result::Ok(name)
    };
    let (accepted, connected) = tokio::join!(accepting, connecting);
    let name = accepted?;
    connected?;
    Ok(name)
}

const GATEWAY: Wish<'_> =
    Wish { cn: "gw-1", dns: &["gw-1.plant.example"], serial: 7, expired: false };

#[tokio::test]
async fn the_names_of_a_good_certificate_are_known() {
    let ca = Ca::new("plant");
    let files = Files::new(&ca);
    for asked in [ClientCertificates::Required, ClientCertificates::Optional] {
        let server = ServerTls::new(files.config(asked), b"mqtt").unwrap();
        let name = shake(&server, &files.client(&ca, Some((&ca, GATEWAY)))).await.unwrap().unwrap();
        assert_eq!(name.cn.as_deref(), Some("gw-1"));
        assert_eq!(name.sans, ["gw-1.plant.example"]);
    }
    let server = ServerTls::new(files.config(ClientCertificates::None), b"mqtt").unwrap();
    assert_eq!(shake(&server, &files.client(&ca, Some((&ca, GATEWAY)))).await.unwrap(), None);
}

#[tokio::test]
async fn a_certificate_that_is_missing_is_refused_only_where_it_is_required() {
    let ca = Ca::new("plant");
    let files = Files::new(&ca);
    let required = ServerTls::new(files.config(ClientCertificates::Required), b"mqtt").unwrap();
    shake(&required, &files.client(&ca, None)).await.unwrap_err();
    let optional = ServerTls::new(files.config(ClientCertificates::Optional), b"mqtt").unwrap();
    assert_eq!(shake(&optional, &files.client(&ca, None)).await.unwrap(), None);
}

#[tokio::test]
async fn a_bad_certificate_is_refused_even_where_none_is_required() {
    let (ca, stranger) = (Ca::new("plant"), Ca::new("plant"));
    let files = Files::new(&ca);
    let expired = Wish { expired: true, ..GATEWAY };
    for asked in [ClientCertificates::Required, ClientCertificates::Optional] {
        let server = ServerTls::new(files.config(asked), b"mqtt").unwrap();
        let text = |result: io::Result<_>| result.unwrap_err().to_string();
        let error = text(shake(&server, &files.client(&ca, Some((&ca, expired)))).await);
        assert!(error.contains("certificate expired"), "{error}");
        shake(&server, &files.client(&ca, Some((&stranger, GATEWAY)))).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_client_does_not_talk_to_somebody_else() {
    let (ca, stranger) = (Ca::new("plant"), Ca::new("plant"));
    let files = Files::new(&ca);
    let server = ServerTls::new(files.config(ClientCertificates::None), b"mqtt").unwrap();
    shake(&server, &files.client(&ca, None)).await.unwrap();
    shake(&server, &files.client(&stranger, None)).await.unwrap_err();
    files.serve(&ca, "elsewhere.example");
    let server = ServerTls::new(files.config(ClientCertificates::None), b"mqtt").unwrap();
    shake(&server, &files.client(&ca, None)).await.unwrap_err();
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_others_are_not() {
    let ca = Ca::new("plant");
    let files = Files::new(&ca);
    let list = files.put("crl.pem", &ca.revoke(&[7]));
    let config = ServerTlsConfig { crl: vec![list], ..files.config(ClientCertificates::Required) };
    let server = ServerTls::new(config, b"mqtt").unwrap();
    let error = shake(&server, &files.client(&ca, Some((&ca, GATEWAY)))).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("revoked"), "{error}");
    let other = Wish { serial: 8, ..GATEWAY };
    shake(&server, &files.client(&ca, Some((&ca, other)))).await.unwrap();
}

/// Tries until the files were looked at again, which happens at most once a second.
async fn until(
    server: &ServerTls,
    client: &ClientTls,
    wanted: impl Fn(&io::Result<Option<CertificateName>>) -> bool,
) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !wanted(&shake(server, client).await) {
        assert!(Instant::now() < deadline, "the new files are not used");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn files_are_taken_without_a_restart_and_broken_ones_are_not() {
    let (ca, other) = (Ca::new("plant"), Ca::new("next year's"));
    let files = Files::new(&ca);
    let list = files.put("crl.pem", &ca.revoke(&[]));
    let config =
        ServerTlsConfig { crl: vec![list.clone()], ..files.config(ClientCertificates::Required) };
    let server = ServerTls::new(config, b"mqtt").unwrap();
    let client = files.client(&ca, Some((&ca, GATEWAY)));
    shake(&server, &client).await.unwrap();
    // Revoked while we run. The same client object would resume its session if it could.
    files.put("crl.pem", &ca.revoke(&[7]));
    until(&server, &client, |result| result.is_err()).await;
    files.put("crl.pem", &ca.revoke(&[]));
    until(&server, &client, |result| result.is_ok()).await;
    // Half-written: the old state stays, and the rest arrives later.
    let (cert, key) = other.issue(Wish { dns: &["localhost"], serial: 3, ..Wish::default() });
    files.put("cert.pem", &cert[..cert.len() / 2]);
    sleep(Duration::from_millis(1100)).await;
    shake(&server, &client).await.unwrap();
    files.put("cert.pem", &cert);
    sleep(Duration::from_millis(1100)).await;
    shake(&server, &client).await.unwrap();
    files.put("key.pem", &key);
    until(&server, &client, |result| result.is_err()).await;
    let client = files.client(&other, Some((&ca, GATEWAY)));
    shake(&server, &client).await.unwrap();
}

#[test]
fn wrong_files_are_named() {
    let ca = Ca::new("plant");
    let files = Files::new(&ca);
    let good = files.config(ClientCertificates::Required);
    let missing = PathBuf::from("missing.pem");
    let empty = files.put("empty.pem", "");
    let (_, other_key) = ca.issue(GATEWAY);
    let other_key = files.put("other-key.pem", &other_key);
    for (config, word) in [
        (ServerTlsConfig { cert: missing.clone(), ..good.clone() }, "missing.pem"),
        (ServerTlsConfig { cert: empty.clone(), ..good.clone() }, "empty.pem"),
        (ServerTlsConfig { key: empty.clone(), ..good.clone() }, "empty.pem"),
        (ServerTlsConfig { key: other_key, ..good.clone() }, "other-key.pem"),
        (ServerTlsConfig { client_ca: Some(empty.clone()), ..good.clone() }, "client_ca"),
        (ServerTlsConfig { client_ca: None, ..good.clone() }, "client_ca"),
        (ServerTlsConfig { crl: vec![empty], ..good.clone() }, "crl"),
    ] {
        let error = ServerTls::new(config, b"mqtt").err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
    let error = ClientTls::new(None, Some(&missing), None, "localhost").err().unwrap();
    assert!(error.to_string().contains("key_file"), "{error}");
}
