//! Where the broker is, how to get a byte stream to it (plain, TLS, WebSocket), and the first two
//! packets.

use std::fmt;
use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use super::config::SubscriberConfig;
use super::packets::{self, Accepted, Connect};
use crate::mqtt::buffer::ReadBuffer;
use crate::mqtt::limits::{BROKER_FRAME_BYTES_MAX, CONNACK_BYTES_MAX, DIAL_TIMEOUT};
use crate::mqtt::wire::{frame, kind};
use crate::net::tls::ClientTls;
use crate::net::{BoxStream, ws};
use crate::source::SourceError;
use crate::time::timeout;

/// What most often is behind a connection that is closed without a word.
const CLOSED_HINT: &str = "does it expect TLS (mqtts://), or refuse this user or client_id?";

/// A checked address.
pub(crate) struct Target {
    host: String,
    port: u16,
    tls: Option<ClientTls>,
    /// Path of the WebSocket.
    path: Option<String>,
    shown: String,
}

impl Target {
    /// Checks the URL and prepares TLS.
    pub(crate) fn new(config: &SubscriberConfig) -> Result<Self, SourceError> {
        let bad = |text: &str| Err(SourceError::Config(text.to_owned()));
        let url = Url::parse(&config.url)
            .map_err(|error| SourceError::Config(format!("`url`: {error}")))?;
        let (tls, socket, port) = match url.scheme() {
            "mqtt" => (false, false, 1883),
            "mqtts" => (true, false, 8883),
            "ws" => (false, true, 80),
            "wss" => (true, true, 443),
            other => {
                let text = format!("`url` begins with {other}://, not mqtt(s):// or ws(s)://");
                return Err(SourceError::Config(text));
            }
        };
        if !url.username().is_empty() || url.password().is_some() {
            return bad("`url` must not hold credentials: use `user`, `password`");
        }
        if !socket && (!matches!(url.path(), "" | "/") || url.query().is_some()) {
            return bad("`url` has more than a host and a port");
        }
        if url.fragment().is_some() {
            return bad("`url` has a fragment (`#`)");
        }
        let host = url.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return bad("`url` names no host");
        }
        if !tls && (config.ca_file.is_some() || config.cert_file.is_some()) {
            return bad("certificates are for TLS: write mqtts:// or wss:// in `url`");
        }
        let (ca, cert, key) = (&config.ca_file, &config.cert_file, &config.key_file);
        let tls = tls
            .then(|| ClientTls::new(ca.as_deref(), cert.as_deref(), key.as_deref(), &host))
            .transpose()?;
        let port = url.port().unwrap_or(port);
        let path = socket.then(|| url[url::Position::BeforePath..].to_owned());
        let shown = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        Ok(Self { host, port, tls, path, shown })
    }

    /// Connects.
    pub(crate) async fn dial(&self) -> io::Result<BoxStream> {
        #[cfg(test)]
        if let Some(simulated) = crate::sim::inject::dial(&self.host) {
            return simulated;
        }
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let stream: BoxStream = match &self.tls {
            None => Box::new(tcp),
            Some(tls) => Box::new(tls.connect(tcp).await?),
        };
        match &self.path {
            None => Ok(stream),
            Some(path) => {
                let stream = ws::connect(stream, &self.shown, path, BROKER_FRAME_BYTES_MAX);
                Ok(Box::new(stream.await?))
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Connects and shakes hands; gives the stream, what came after the CONNACK, and what it said.
pub(crate) async fn shake(
    target: &Target,
    hello: Connect<'_>,
) -> Result<(BoxStream, ReadBuffer, Accepted), String> {
    let version = hello.config.version();
    let hello = hello.encode()?;
    let mut buffer = ReadBuffer::new();
    let shake = async {
        let error = |error| format!("cannot connect to {target}: {error}");
        let mut stream = target.dial().await.map_err(error)?;
        stream.write_all(&hello).await.map_err(error)?;
        // A TLS stream may hold bytes back.
        stream.flush().await.map_err(error)?;
        loop {
            let received = buffer.received();
            if received.first().is_some_and(|byte1| byte1 >> 4 != kind::CONNACK) {
                return Err(format!("{target} does not answer as an MQTT broker does"));
            }
            let found = frame(received, CONNACK_BYTES_MAX).map_err(|v| v.to_string())?;
            if let Some(frame) = found {
                let accepted = packets::connack(version, &received[..frame.total_len])?;
                buffer.consume(frame.total_len);
                return Ok((stream, accepted));
            }
            match stream.read(buffer.spare(CONNACK_BYTES_MAX)).await {
                Ok(0) => return Err(format!("{target} closes before its CONNACK: {CLOSED_HINT}")),
                Ok(n) => buffer.filled(n),
                Err(error) => return Err(format!("{target} before its CONNACK: {error}")),
            }
        }
    };
    let shaken = timeout(DIAL_TIMEOUT, shake).await;
    let (stream, accepted) =
        shaken.map_err(|_| format!("{target} does not answer within {DIAL_TIMEOUT:?}"))??;
    Ok((stream, buffer, accepted))
}
