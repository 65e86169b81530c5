//! The doors of an endpoint: sockets that listen, and the layers (TLS, WebSocket) between each of
//! them and MQTT.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::endpoint::EndpointConfig;
use crate::net::tls::{CertificateName, ClientCertificates, ServerTls, ServerTlsConfig};
use crate::net::{BoxStream, ws};
use crate::source::SourceError;

/// MQTT over TLS.
#[derive(Clone, Debug)]
pub struct TlsListener {
    /// Where; none if only WebSockets use these files.
    pub listen: Option<SocketAddr>,
    /// Certificates and rules.
    pub files: ServerTlsConfig,
}

/// MQTT over WebSocket.
#[derive(Clone, Debug)]
pub struct WebSocketListener {
    /// Where.
    pub listen: SocketAddr,
    /// The path that clients ask for.
    pub path: String,
    /// Over TLS, with the files of [`TlsListener`].
    pub tls: bool,
    /// Web pages that may connect; if empty, all where clients have to show who they are, and none
    /// where they do not: any page in a browser on this machine could send readings.
    pub origins: Vec<String>,
}

/// What is between a socket and MQTT.
pub(crate) struct Layers {
    /// For logs.
    pub(crate) name: &'static str,
    tls: Option<Arc<ServerTls>>,
    websocket: Option<ws::WsRules>,
    timeout: Duration,
}

/// All sockets of an endpoint.
pub(crate) struct Listeners {
    all: Vec<(TcpListener, Arc<Layers>)>,
    /// Whose turn it is: no socket may keep the others waiting.
    next: usize,
}

impl Layers {
    /// Whether MQTT is directly on the socket.
    pub(crate) fn is_plain(&self) -> bool {
        self.tls.is_none() && self.websocket.is_none()
    }

    /// The handshakes.
    ///
    /// # Errors
    /// What the other side did wrong, or that it was too slow.
    pub(crate) async fn open(
        &self,
        stream: TcpStream,
    ) -> io::Result<(BoxStream, Option<CertificateName>)> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no handshake in time");
        timeout(self.timeout, self.shake(stream)).await.map_err(late)?
    }

    async fn shake(&self, stream: TcpStream) -> io::Result<(BoxStream, Option<CertificateName>)> {
        let mut certificate = None;
        let mut stream: BoxStream = Box::new(stream);
        if let Some(tls) = &self.tls {
            let (inside, name) = tls.accept(stream).await?;
            (stream, certificate) = (Box::new(inside), name);
        }
        if let Some(rules) = &self.websocket {
            stream = Box::new(ws::accept(stream, rules).await?);
        }
        Ok((stream, certificate))
    }
}

impl Listeners {
    /// Starts to listen.
    ///
    /// # Errors
    /// [`SourceError::Config`] for an address beyond loopback where nobody is asked who they are,
    /// [`SourceError::Io`] if an address cannot be bound.
    pub(crate) async fn bind(config: &EndpointConfig) -> Result<Self, SourceError> {
        let open = config.security.is_open() && config.users.is_empty();
        let asked = |tls: bool| {
            let required = ClientCertificates::Required;
            let shown =
                config.tls.as_ref().is_some_and(|t| t.files.client_certificates == required);
            !open || (tls && shown)
        };
        let server = |alpn| match &config.tls {
            Some(tls) => ServerTls::new(tls.files.clone(), alpn).map(Arc::new).map(Some),
            None => Ok(None),
        };
        let layers = |name, tls, websocket| {
            Arc::new(Layers { name, tls, websocket, timeout: config.connect_timeout })
        };
        let mut wanted = vec![("listen", config.listen, layers("mqtt", None, None))];
        if let Some(listen) = config.tls.as_ref().and_then(|tls| tls.listen) {
            wanted.push(("tls.listen", listen, layers("mqtts", server(b"mqtt")?, None)));
        }
        if let Some(websocket) = &config.websocket {
            let (name, tls) = match websocket.tls {
                false => ("ws", None),
                true => ("wss", server(b"http/1.1")?),
            };
            if websocket.tls && tls.is_none() {
                let text = "`websocket.tls` needs the files of `tls`".to_owned();
                return Err(SourceError::Config(text));
            }
            let origins = websocket.origins.clone();
            let rules = ws::WsRules {
                path: websocket.path.clone(),
                origins: (!origins.is_empty() || !asked(websocket.tls)).then_some(origins),
                message_bytes_max: config.packet_bytes_max,
                timeout: config.connect_timeout,
            };
            wanted.push(("websocket.listen", websocket.listen, layers(name, tls, Some(rules))));
        }
        let mut all = Vec::new();
        for (key, listen, layers) in wanted {
            if !asked(layers.tls.is_some()) && !config.insecure_listen && !listen.ip().is_loopback()
            {
                return Err(SourceError::Config(format!(
                    "`{key} = \"{listen}\"` can be reached from other machines and nobody is \
                     asked who they are: give `users`, listen on 127.0.0.1, or set \
                     `insecure_listen = true`"
                )));
            }
            let io = |error| SourceError::Io { what: format!("cannot listen on {listen}"), error };
            all.push((TcpListener::bind(listen).await.map_err(io)?, layers));
        }
        Ok(Self { all, next: 0 })
    }

    /// What is listened on, with the real ports; the plain socket is the first.
    ///
    /// # Errors
    /// [`SourceError::Io`] if the system does not tell.
    pub(crate) fn addresses(&self) -> Result<Vec<(&'static str, SocketAddr)>, SourceError> {
        let io = |error| SourceError::Io { what: "local address".to_owned(), error };
        let all = self.all.iter();
        all.map(|(socket, layers)| Ok((layers.name, socket.local_addr().map_err(io)?))).collect()
    }

    /// The next connection of any socket. Cancel-safe.
    pub(crate) async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr, Arc<Layers>)> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(TcpStream, SocketAddr, Arc<Layers>)>> {
        for i in 0..self.all.len() {
            let at = (self.next + i) % self.all.len();
            let (socket, layers) = &self.all[at];
            if let Poll::Ready(accepted) = socket.poll_accept(cx) {
                self.next = at + 1;
                let layers = Arc::clone(layers);
                return Poll::Ready(accepted.map(|(stream, peer)| (stream, peer, layers)));
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
