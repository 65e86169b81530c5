//! Devices at every door, from the socket to the journal: what is let in works, and what is not is
//! told why and leaves nothing behind.
#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::mqtt::Endpoint;
use crate::mqtt::security::{AclRule, CertificateUser, SecurityConfig};
use crate::mqtt::testing::{TestIntake, eventually, packet, publish, text};
use crate::mqtt::wire::frame;
use crate::net::Stream;
use crate::net::tls::tests::{Ca, Files, Wish};
use crate::source::{Source, SourceStats};

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

struct Running {
    addresses: Vec<(&'static str, SocketAddr)>,
    intake: Arc<TestIntake>,
    stats: Arc<SourceStats>,
    _stop: watch::Sender<bool>,
    _task: JoinHandle<Result<(), SourceError>>,
}

impl Running {
    async fn start(config: EndpointConfig) -> Self {
        let endpoint = Endpoint::bind(config).await.unwrap();
        let addresses = endpoint.addresses().unwrap();
        let (intake, stats) = (TestIntake::open(), Arc::new(SourceStats::default()));
        let (stop, stopped) = watch::channel(false);
        let task = Box::new(endpoint).start(intake.clone(), stopped, stats.clone());
        Self { addresses, intake, stats, _stop: stop, _task: task }
    }

    fn address(&self, door: &str) -> SocketAddr {
        self.addresses.iter().find(|(name, _)| *name == door).unwrap().1
    }

    /// A stream through a door, with this certificate where it is TLS.
    async fn open(
        &self,
        door: &str,
        files: &Files,
        ca: &Ca,
        shows: Option<(&Ca, Wish<'_>)>,
    ) -> io::Result<BoxStream> {
        let address = self.address(door);
        let mut stream: BoxStream = Box::new(TcpStream::connect(address).await?);
        if door.ends_with('s') && door != "ws" {
            stream = Box::new(files.client(ca, shows).connect(stream).await?);
        }
        if door.starts_with("ws") {
            stream = Box::new(ws::connect(stream, "localhost", "/mqtt", 1 << 16).await?);
        }
        Ok(stream)
    }
}

/// All four doors; devices show certificates of `ca`, whose common name is their user.
fn config(files: &Files) -> EndpointConfig {
    let local = "127.0.0.1:0".parse().unwrap();
    EndpointConfig {
        tls: Some(TlsListener {
            listen: Some(local),
            files: files.config(ClientCertificates::Optional),
        }),
        websocket: Some(websocket(true)),
        ..EndpointConfig::new(local)
    }
}

fn websocket(tls: bool) -> WebSocketListener {
    let listen = "127.0.0.1:0".parse().unwrap();
    WebSocketListener { listen, path: "/mqtt".to_owned(), tls, origins: vec![] }
}

fn connect(level: u8, client: &str, login: Option<(&str, &str)>) -> Vec<u8> {
    let flags = if login.is_some() { 0xC2 } else { 2 };
    let mut body = text("MQTT");
    body.extend_from_slice(&[level, flags, 0, 60]);
    if level == 5 {
        body.push(0);
    }
    body.extend(text(client));
    if let Some((user, password)) = login {
        body.extend(text(user));
        body.extend(text(password));
    }
    packet(0x10, &body)
}

async fn send<S: Stream + ?Sized>(stream: &mut S, packet: &[u8]) -> io::Result<()> {
    stream.write_all(packet).await?;
    stream.flush().await
}

/// The next packet; an error if the connection ends.
async fn read<S: Stream + ?Sized>(stream: &mut S) -> io::Result<Vec<u8>> {
    let reading = async {
        let mut bytes = Vec::new();
        loop {
            bytes.push(stream.read_u8().await?);
            if let Ok(Some(frame)) = frame(&bytes, 1 << 20)
                && frame.total_len == bytes.len()
            {
                return Ok(bytes);
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("no packet came")
}

async fn ask<S: Stream + ?Sized>(stream: &mut S, packet: &[u8]) -> io::Result<Vec<u8>> {
    send(stream, packet).await?;
    read(stream).await
}

const GATEWAY: Wish<'_> = Wish { cn: "gw-1", dns: &[], serial: 7, expired: false };

#[tokio::test]
async fn every_door_leads_to_the_journal() {
    let ca = Ca::new("plant");
    let files = Files::new(&ca);
    let tls = Running::start(config(&files)).await;
    let plain = EndpointConfig { websocket: Some(websocket(false)), ..config(&files) };
    let plain = Running::start(plain).await;
    for (endpoint, door) in
        [(&tls, "mqtt"), (&tls, "mqtts"), (&tls, "wss"), (&plain, "ws"), (&plain, "mqtts")]
    {
        let before = endpoint.intake.texts().len();
        let mut stream = endpoint.open(door, &files, &ca, None).await.unwrap();
        let ack = ask(&mut stream, &connect(4, door, None)).await.unwrap();
        assert_eq!(ack, [0x20, 2, 0, 0], "{door}");
        let ack = ask(&mut stream, &publish(4, 1, 7, "a/b", door)).await.unwrap();
        assert_eq!(ack, [0x40, 2, 0, 7], "{door}");
        let large = "x".repeat(100_000);
        let ack = ask(&mut stream, &publish(4, 1, 8, "a/b", &large)).await.unwrap();
        assert_eq!(ack, [0x40, 2, 0, 8], "{door}");
        let texts = endpoint.intake.texts();
        assert!(texts[before..].contains(&format!("a/b {door}")), "{door}");
        assert!(texts[before..].contains(&format!("a/b {large}")), "{door}");
        send(&mut stream, &[0xE0, 0]).await.unwrap();
        read(&mut stream).await.unwrap_err();
    }
}

#[tokio::test]
async fn tls_lets_nobody_in_whose_certificate_is_missing_or_bad() {
    let (ca, stranger) = (Ca::new("plant"), Ca::new("plant"));
    let files = Files::new(&ca);
    let list = files.put("crl.pem", &ca.revoke(&[9]));
    let mut config = config(&files);
    config.tls.as_mut().unwrap().files =
        ServerTlsConfig { crl: vec![list], ..files.config(ClientCertificates::Required) };
    let endpoint = Running::start(config).await;
    let expired = Wish { expired: true, ..GATEWAY };
    let revoked = Wish { serial: 9, ..GATEWAY };
    let mut refused = 0;
    for (what, shows) in [
        ("none", None),
        ("of somebody else", Some((&stranger, GATEWAY))),
        ("expired", Some((&ca, expired))),
        ("revoked", Some((&ca, revoked))),
    ] {
        for door in ["mqtts", "wss"] {
            let tried = async {
                let mut stream = endpoint.open(door, &files, &ca, shows).await?;
                ask(&mut stream, &connect(5, "gw-1", None)).await
            };
            tried.await.expect_err(what);
            refused += 1;
        }
    }
    let counted = async {
        while endpoint.stats.refused.load(std::sync::atomic::Ordering::Relaxed) < refused {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, counted).await.expect("refusals are counted");
    assert!(endpoint.intake.texts().is_empty());
    let refusals = |word: &str| {
        let events = endpoint.intake.session_events().into_iter();
        events.filter(|e| e.event == "refused" && e.detail.contains(word)).count()
    };
    eventually(|| refusals("handshake: ") == refused as usize).await;
    assert_eq!(refusals("Revoked"), 2, "one at each door");
    let mut stream = endpoint.open("mqtts", &files, &ca, Some((&ca, GATEWAY))).await.unwrap();
    let ack = ask(&mut stream, &connect(4, "gw-1", None)).await.unwrap();
    assert_eq!(ack, [0x20, 2, 0, 0]);
}

fn own(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

/// Certificates name users, who have their own client id and branch of topics.
fn bound(files: &Files) -> EndpointConfig {
    let rule = AclRule {
        client: "%u".to_owned(),
        publish: own(&["plant/%u/#"]),
        subscribe: own(&["cmd/%u/+", "plant/%u/#"]),
        ..AclRule::default()
    };
    EndpointConfig {
        users: [("gw-2".to_owned(), "two".to_owned())].into(),
        security: SecurityConfig {
            certificate_user: Some(CertificateUser::CommonName),
            acl: vec![rule],
            ..SecurityConfig::default()
        },
        ..config(files)
    }
}

#[tokio::test]
async fn who_somebody_is_decides_under_which_client_id() {
    let ca = Ca::new("plant");
    let files = Files::new(&ca);
    let endpoint = Running::start(bound(&files)).await;
    let shows = Some((&ca, GATEWAY));
    for (what, door, shows, client, login, v3, v5) in [
        ("certificate", "mqtts", shows, "gw-1", None, 0, 0),
        ("certificate over WebSocket", "wss", shows, "gw-1", None, 0, 0),
        ("name is not the client id", "mqtts", shows, "gw-2", None, 5, 0x87),
        ("another user's name", "mqtts", shows, "gw-2", Some(("gw-2", "two")), 4, 0x86),
        ("neither", "mqtts", None, "gw-1", None, 4, 0x86),
        ("password", "mqtts", None, "gw-2", Some(("gw-2", "two")), 0, 0),
        ("wrong password", "mqtt", None, "gw-2", Some(("gw-2", "one")), 4, 0x86),
        ("another's client id", "mqtt", None, "gw-1", Some(("gw-2", "two")), 5, 0x87),
        ("a name without proof", "mqtt", None, "gw-1", Some(("gw-1", "")), 4, 0x86),
    ] {
        let mut stream = endpoint.open(door, &files, &ca, shows).await.unwrap();
        let ack = ask(&mut stream, &connect(4, client, login)).await.unwrap();
        assert_eq!((ack[0], ack[3]), (0x20, v3), "{what}");
        let mut stream = endpoint.open(door, &files, &ca, shows).await.unwrap();
        let ack = ask(&mut stream, &connect(5, client, login)).await.unwrap();
        assert_eq!((ack[0], ack[3]), (0x20, v5), "{what}");
    }
}

#[tokio::test]
async fn foreign_topics_are_refused_and_do_not_leak() {
    let ca = Ca::new("plant");
    let files = Files::new(&ca);
    let endpoint = Running::start(bound(&files)).await;
    let mut one = endpoint.open("mqtts", &files, &ca, Some((&ca, GATEWAY))).await.unwrap();
    assert_eq!(ask(&mut one, &connect(5, "gw-1", None)).await.unwrap()[3], 0);
    let filters =
        ["plant/gw-1/#", "plant/gw-2/#", "#", "plant/+/t", "$share/g/#", "$SYS/#", "cmd/gw-1/+"];
    let mut body = vec![0, 9, 0];
    for filter in filters {
        body.extend(text(filter));
        body.push(1);
    }
    let ack = ask(&mut one, &packet(0x82, &body)).await.unwrap();
    assert_eq!(ack[5..], [1, 0x80, 0x80, 0x80, 0x80, 0x80, 1], "{ack:02x?}");
    let mut two = endpoint.open("mqtt", &files, &ca, None).await.unwrap();
    let login = Some(("gw-2", "two"));
    assert_eq!(ask(&mut two, &connect(5, "gw-2", login)).await.unwrap()[3], 0);
    for (id, topic, reason) in [(1, "plant/gw-1/t", 0x87), (2, "cmd/gw-1/x", 0x87)] {
        let ack = ask(&mut two, &publish(5, 1, id, topic, "forged")).await.unwrap();
        assert_eq!((ack[0], ack[4]), (0x40, reason), "{topic}: {ack:02x?}");
    }
    let ack = ask(&mut two, &publish(5, 1, 3, "plant/gw-2/t", "own")).await.unwrap();
    assert_eq!((ack[0], ack.get(4).copied().unwrap_or(0) & 0x80), (0x40, 0));
    // What one gets next is its own message: nothing of the other's came before.
    send(&mut one, &publish(5, 0, 0, "plant/gw-1/t", "mine")).await.unwrap();
    let got = read(&mut one).await.unwrap();
    assert!(got.ends_with(b"mine"), "{got:02x?}");
    let texts = endpoint.intake.texts();
    assert!(texts.contains(&"plant/gw-2/t own".to_owned()));
    assert!(!texts.iter().any(|t| t.contains("forged")), "{texts:?}");
}

/// A SUBSCRIBE of level 5 at QoS 1.
fn subscribe(filter: &str) -> Vec<u8> {
    packet(0x82, &[vec![0, 9, 0], text(filter), vec![1]].concat())
}

#[tokio::test]
async fn what_is_denied_is_not_delivered_by_a_wide_subscription_nor_by_an_old_session() {
    let ca = Ca::new("plant");
    let files = Files::new(&ca);
    let all = own(&["#"]);
    let rule = |user: &str, subscribe: &[&str], deny: &[&str]| AclRule {
        user: user.to_owned(),
        publish: all.clone(),
        subscribe: own(subscribe),
        deny_subscribe: own(deny),
        ..AclRule::default()
    };
    let rules = vec![rule("ann", &["#"], &["test/nosubscribe"]), rule("bob", &["b/#"], &[])];
    let config = EndpointConfig {
        users: ["ann", "bob"].map(|user| (user.to_owned(), user.to_owned())).into(),
        security: SecurityConfig { acl: rules, ..SecurityConfig::default() },
        ..config(&files)
    };
    let endpoint = Running::start(config).await;
    // Clean start with a session that lasts: flags 0xC2, session expiry 600 s.
    let stay = |user: &str, flags: u8| {
        let mut body = text("MQTT");
        body.extend_from_slice(&[5, flags, 0, 60, 5, 0x11, 0, 0, 0x02, 0x58]);
        body.extend([text("shared"), text(user), text(user)].concat());
        packet(0x10, &body)
    };
    let mut ann = endpoint.open("mqtt", &files, &ca, None).await.unwrap();
    assert_eq!(ask(&mut ann, &stay("ann", 0xC2)).await.unwrap()[2..4], [0, 0]);
    let ack = ask(&mut ann, &subscribe("test/nosubscribe")).await.unwrap();
    assert_eq!(ack.last(), Some(&0x80));
    assert_eq!(ask(&mut ann, &subscribe("#")).await.unwrap().last(), Some(&1));
    let mut sender = endpoint.open("mqtt", &files, &ca, None).await.unwrap();
    let login = Some(("bob", "bob"));
    assert_eq!(ask(&mut sender, &connect(5, "sender", login)).await.unwrap()[3], 0);
    for (id, topic, payload) in [(1, "test/nosubscribe", "hidden"), (2, "test/ok", "seen")] {
        let ack = ask(&mut sender, &publish(5, 1, id, topic, payload)).await.unwrap();
        assert_eq!(ack[0], 0x40);
    }
    let got = read(&mut ann).await.unwrap();
    assert!(got.ends_with(b"seen"), "{}", String::from_utf8_lossy(&got));
    // Ann goes; what comes for her waits; Bob opens her session.
    send(&mut ann, &[0xE0, 0]).await.unwrap();
    read(&mut ann).await.unwrap_err();
    for (id, topic, payload) in [(3, "a/secret", "for ann"), (4, "b/x", "also for ann")] {
        let ack = ask(&mut sender, &publish(5, 1, id, topic, payload)).await.unwrap();
        assert_eq!(ack[0], 0x40);
    }
    drop(ann);
    // While her connection is still ending, nobody else has her client id.
    let opened = async {
        loop {
            let mut bob = endpoint.open("mqtt", &files, &ca, None).await.unwrap();
            match ask(&mut bob, &stay("bob", 0xC0)).await.unwrap()[2..4] {
                // A session belongs to its user: his is a new one.
                [0, 0] => return bob,
                [0, 0x87] => tokio::time::sleep(Duration::from_millis(20)).await,
                ref other => panic!("{other:02x?}"),
            }
        }
    };
    let mut bob = timeout(PATIENCE, opened).await.expect("the client id is free");
    assert_eq!(ask(&mut bob, &subscribe("b/#")).await.unwrap().last(), Some(&1));
    let ack = ask(&mut sender, &publish(5, 1, 5, "b/y", "for bob")).await.unwrap();
    assert_eq!(ack[0], 0x40);
    let got = read(&mut bob).await.unwrap();
    assert!(got.ends_with(b"for bob"), "{}", String::from_utf8_lossy(&got));
}

#[tokio::test]
async fn every_door_to_other_machines_asks_who_is_there() {
    let ca = Ca::new("plant");
    let files = Files::new(&ca);
    let far: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let good = config(&files);
    let mut tls = good.clone();
    tls.tls.as_mut().unwrap().listen = Some(far);
    let mut websocket = good.clone();
    websocket.websocket.as_mut().unwrap().listen = far;
    let plain = EndpointConfig { listen: far, ..good };
    for (config, key) in
        [(&plain, "listen"), (&tls, "tls.listen"), (&websocket, "websocket.listen")]
    {
        let error = Endpoint::bind(config.clone()).await.err().unwrap().to_string();
        assert!(error.contains(&format!("`{key} =")), "{error}");
        let users = [("a".to_owned(), "b".to_owned())].into();
        Endpoint::bind(EndpointConfig { users, ..config.clone() }).await.unwrap();
        let insecure_listen = true;
        Endpoint::bind(EndpointConfig { insecure_listen, ..config.clone() }).await.unwrap();
    }
    for (mut config, good) in [(plain, false), (tls, true), (websocket, true)] {
        config.tls.as_mut().unwrap().files.client_certificates = ClientCertificates::Required;
        assert_eq!(Endpoint::bind(config).await.is_ok(), good);
    }
}

#[tokio::test]
async fn a_page_in_a_browser_is_not_let_in_where_nobody_is_asked() {
    let ca = Ca::new("plant");
    let files = Files::new(&ca);
    for (users, wanted) in [(vec![], "HTTP/1.1 403"), (vec!["a"], "HTTP/1.1 101")] {
        let users = users.into_iter().map(|u| (u.to_owned(), u.to_owned())).collect();
        let config = EndpointConfig { users, websocket: Some(websocket(false)), ..config(&files) };
        let endpoint = Running::start(config).await;
        let mut stream = TcpStream::connect(endpoint.address("ws")).await.unwrap();
        let request = "GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
                       Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       Sec-WebSocket-Protocol: mqtt\r\nOrigin: https://evil.example\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), wanted);
    }
}

#[tokio::test]
async fn a_slow_handshake_times_out_at_every_door_and_an_address_has_its_share() {
    let ca = Ca::new("plant");
    let files = Files::new(&ca);
    let config = EndpointConfig {
        // The last one comes in within it.
        connect_timeout: Duration::from_secs(3),
        security: SecurityConfig { connections_per_address: Some(3), ..SecurityConfig::default() },
        ..config(&files)
    };
    let endpoint = Running::start(config).await;
    let mut mute = Vec::new();
    for door in ["mqtt", "mqtts", "wss", "mqtts"] {
        mute.push(TcpStream::connect(endpoint.address(door)).await.unwrap());
    }
    for mut stream in mute {
        let mut end = [0; 16];
        // Either kind of end, but not our patience.
        let _ = timeout(PATIENCE, stream.read(&mut end)).await.expect("closed");
    }
    let mut stream = endpoint.open("mqtts", &files, &ca, None).await.unwrap();
    assert_eq!(ask(&mut stream, &connect(4, "a", None)).await.unwrap(), [0x20, 2, 0, 0]);
}
