//! The one place where it is asked who a client is and what it may do.

use std::net::SocketAddr;

use super::connect::{Connect, Why};
use super::users::Users;

/// Judges clients.
pub(crate) struct Access {
    users: Users,
}

/// A client that was let in.
pub(crate) struct Identity {
    /// The user it has proved to be; empty for nobody.
    pub(crate) user: String,
}

impl Access {
    pub(crate) fn new(users: Users) -> Self {
        Self { users }
    }

    /// Whether whoever sent this CONNECT may come in.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn admit(
        &self,
        connect: &Connect<'_>,
        _client_id: &str,
        _address: SocketAddr,
    ) -> Result<Identity, Why> {
        if !self.users.allow(connect.user, connect.password) {
            return Err(Why::Credentials);
        }
        let user = if self.users.is_open() { "" } else { connect.user.unwrap_or_default() };
        Ok(Identity { user: user.to_owned() })
    }
}

impl Identity {
    pub(crate) fn may_publish(&self, _topic: &str) -> bool {
        true
    }

    pub(crate) fn may_subscribe(&self, _filter: &str) -> bool {
        true
    }
}
