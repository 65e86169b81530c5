//! The one place where it is asked who a client is and what it may do.

use std::net::SocketAddr;
use std::sync::Arc;

use super::connect::{Connect, Refusal, Why};
pub(crate) use super::security::Identity;
use super::security::{Claim, Denied, Gate};
use crate::net::tls::CertificateName;

/// Judges clients.
pub(crate) struct Access {
    pub(crate) gate: Arc<Gate>,
}

/// The other end of a connection, as far as the layers below MQTT know it.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Of TLS, verified.
    pub(crate) certificate: Option<CertificateName>,
}

impl Access {
    /// Lets in whoever sent this CONNECT. May take seconds.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn admit(
        &self,
        connect: &Connect<'_>,
        client_id: &str,
        peer: &Peer,
    ) -> Result<Identity, Refusal> {
        let claim = Claim {
            client_id,
            user: connect.user,
            password: connect.password,
            certificate: peer.certificate.as_ref(),
            address: peer.address.ip(),
        };
        let denied = match self.gate.admit(claim).await {
            Ok(identity) => return Ok(identity),
            Err(denied) => denied,
        };
        let text = denied.to_string();
        let why = match denied {
            Denied::Credentials(_) => Why::Credentials,
            Denied::NotAuthorized(text) => Why::NotAuthorized(text),
            Denied::TooMany(text) => Why::Quota(text),
        };
        // The client is told the code only, the log what was wrong.
        Err(Refusal { text, ..why.refuse(connect) })
    }
}
