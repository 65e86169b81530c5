//! The gate: finds out who somebody is, and gives them an identity or the reason why not.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::acl::{Acl, Rules};
use super::counts::{Counted, Counts, Owned, Owners, network};
use super::failures::{Failures, Turn};
use super::passwords::{Checked, Passwords};
use super::rate::RateLimit;
use super::tokens::Tokens;
use super::{CertificateUser, SecurityConfig};
use crate::clock::Clock;
use crate::mqtt::users::Users;
use crate::net::tls::CertificateName;
use crate::source::SourceError;

/// What a CONNECT claims.
#[derive(Clone, Copy)]
pub(crate) struct Claim<'a> {
    /// Also one that we made up.
    pub(crate) client_id: &'a str,
    pub(crate) user: Option<&'a str>,
    pub(crate) password: Option<&'a [u8]>,
    /// Of the TLS connection, verified.
    pub(crate) certificate: Option<&'a CertificateName>,
    pub(crate) address: IpAddr,
}

/// Why somebody is not let in. The text is for our log and never holds a password or token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// Who they are is not shown.
    Credentials(String),
    /// They are known, but may not do this.
    NotAuthorized(String),
    /// There are too many of them, or they try too often.
    TooMany(String),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credentials(text) | Self::NotAuthorized(text) | Self::TooMany(text) => {
                f.write_str(text)
            }
        }
    }
}

/// Judges who connects; one for all listeners of an endpoint.
pub(crate) struct Gate {
    open: bool,
    users: Users,
    passwords: Option<Passwords>,
    tokens: Option<Tokens>,
    certificate_user: Option<CertificateUser>,
    rules: Option<Rules>,
    addresses: Arc<Counts<IpAddr>>,
    per_address: usize,
    names: Arc<Counts<String>>,
    per_user: usize,
    rate_max: Option<u32>,
    owners: Arc<Owners>,
    failures: Failures,
    clock: Clock,
}

/// Somebody who was let in, for as long as the connection lives.
pub(crate) struct Identity {
    user: String,
    /// `None`: everything is allowed.
    acl: Option<Arc<Acl>>,
    valid_until_us: Option<i64>,
    rate_max: Option<u32>,
    _count: Option<Counted<String>>,
    _owned: Owned,
}

/// A place of an address, for as long as a connection lives.
pub(crate) struct Knock {
    _count: Option<Counted<IpAddr>>,
}

impl Gate {
    /// Reads the files and checks the settings.
    ///
    /// # Errors
    /// [`SourceError`] with what cannot be used.
    pub(crate) fn new(config: SecurityConfig, clock: Clock) -> Result<Arc<Self>, SourceError> {
        let rules = match config.acl.is_empty() {
            true => None,
            false => Some(Rules::new(&config.acl)?),
        };
        Ok(Arc::new(Self {
            open: config.is_open(),
            users: Users::new(&config.users)?,
            passwords: config.users_file.map(Passwords::new).transpose()?,
            tokens: config.tokens.map(Tokens::new).transpose()?,
            certificate_user: config.certificate_user,
            rules,
            addresses: Counts::new(),
            per_address: config.connections_per_address.unwrap_or(usize::MAX),
            names: Counts::new(),
            per_user: config.connections_per_user.unwrap_or(usize::MAX),
            rate_max: config.rate_max,
            owners: Arc::default(),
            failures: Failures::default(),
            clock,
        }))
    }

    /// A new connection, before its first byte is read; `None` if its address has too many.
    pub(crate) fn knock(&self, address: IpAddr) -> Option<Knock> {
        if self.per_address == usize::MAX {
            return Some(Knock { _count: None });
        }
        let count = self.addresses.enter(network(address), self.per_address)?;
        Some(Knock { _count: Some(count) })
    }

    /// Judges a CONNECT. May take seconds: checks of passwords wait for each other, and addresses
    /// that failed often wait for their turn.
    ///
    /// # Errors
    /// Why they are not let in.
    pub(crate) async fn admit(&self, claim: Claim<'_>) -> Result<Identity, Denied> {
        let turn = self.failures.turn(claim.address, self.now_ms());
        match turn {
            Turn::Now => {}
            Turn::After(wait_ms) => sleep(Duration::from_millis(wait_ms)).await,
            Turn::Refused => {
                let text = format!("{} has failed to log in too often", claim.address);
                return Err(Denied::TooMany(text));
            }
        }
        let identified = self.identify(claim).await;
        match &identified {
            Ok(_) => self.failures.succeeded(claim.address, turn),
            Err(Denied::Credentials(_)) => {
                self.failures.failed(claim.address, turn, self.now_ms());
            }
            Err(_) => {}
        }
        let (user, valid_until_us) = identified?;
        self.authorize(claim.client_id, user, valid_until_us)
    }

    /// Who they are: the user (empty if nobody is asked), and until when that is shown.
    async fn identify(&self, claim: Claim<'_>) -> Result<(String, Option<i64>), Denied> {
        if let (Some(which), Some(name)) = (self.certificate_user, claim.certificate) {
            let user = certified(which, name)?;
            return same_user(claim.user, user).map(|user| (user, None));
        }
        if self.open {
            return Ok((String::new(), None));
        }
        let name = claim.user.unwrap_or_default();
        let bad = |text: &str| Denied::Credentials(format!("{text} (user {name:?})"));
        let password = claim.password.ok_or_else(|| bad("no password"))?;
        if let Some(tokens) = &self.tokens
            && Tokens::is_token(password)
        {
            let token = tokens.check(password, self.clock.now_us());
            let token = token.map_err(|text| bad(&text))?;
            let user = same_user(claim.user, &token.user)?;
            return Ok((user, Some(token.until_us)));
        }
        let configured = !self.users.is_open() && self.users.allow(claim.user, claim.password);
        if configured {
            return Ok((name.to_owned(), None));
        }
        let Some(passwords) = &self.passwords else {
            return Err(bad("bad user name or password"));
        };
        // A user of the configuration is none of the file, but costs the same.
        let user = claim.user.filter(|user| !self.users.knows(user));
        match passwords.check(user, password, self.now_ms()).await {
            Checked::Right => Ok((name.to_owned(), None)),
            Checked::Wrong => Err(bad("bad user name or password")),
            Checked::Busy => Err(Denied::TooMany("too many logins at a time".to_owned())),
        }
    }

    /// What they may do.
    fn authorize(
        &self,
        client_id: &str,
        user: String,
        valid_until_us: Option<i64>,
    ) -> Result<Identity, Denied> {
        let acl = match &self.rules {
            None => None,
            Some(rules) => Some(rules.acl(&user, client_id).ok_or_else(|| {
                let text = format!("no rule of `acl` lets {user:?} in as {client_id:?}");
                Denied::NotAuthorized(text)
            })?),
        };
        let acl = acl.map(Arc::new);
        let owned = self.owners.enter(client_id, &user).ok_or_else(|| {
            let text = format!("{client_id:?} is connected as another user than {user:?}");
            Denied::NotAuthorized(text)
        })?;
        let count = match self.per_user {
            usize::MAX => None,
            // Nobody is not one user.
            _ if user.is_empty() => None,
            max => Some(self.names.enter(user.clone(), max).ok_or_else(|| {
                Denied::TooMany(format!("{user:?} has {max} connections already"))
            })?),
        };
        Ok(Identity {
            user,
            acl,
            valid_until_us,
            rate_max: self.rate_max,
            _count: count,
            _owned: owned,
        })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.now_us() / 1000).unwrap_or(0)
    }
}

fn certified(which: CertificateUser, name: &CertificateName) -> Result<&str, Denied> {
    let (found, what) = match which {
        CertificateUser::CommonName => (name.cn.as_deref(), "common name"),
        CertificateUser::AlternativeName => (name.sans.first().map(String::as_str), "alternative"),
    };
    let fits = |user: &&str| !user.is_empty() && !user.contains(char::is_control);
    found.filter(fits).ok_or_else(|| {
        Denied::Credentials(format!("the certificate has no {what} name that can be a user"))
    })
}

/// The user that was shown, if the CONNECT names nobody else.
fn same_user(claimed: Option<&str>, shown: &str) -> Result<String, Denied> {
    match claimed {
        Some(claimed) if !claimed.is_empty() && claimed != shown => {
            let text = format!("the user name is {claimed:?}, but {shown:?} was shown");
            Err(Denied::Credentials(text))
        }
        _ => Ok(shown.to_owned()),
    }
}

impl Identity {
    /// The user's name; empty if nobody was asked.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// What the broker asks before each delivery; `None` is everything.
    pub(crate) fn acl(&self) -> Option<Arc<Acl>> {
        self.acl.clone()
    }

    /// Whether anything at all is denied; if not, nobody needs to ask.
    pub(crate) fn is_limited(&self) -> bool {
        self.acl.is_some()
    }

    /// Whether a message, or a will, may be published.
    pub(crate) fn may_publish(&self, topic: &str) -> bool {
        self.acl.as_ref().is_none_or(|acl| acl.may_publish(topic))
    }

    /// Whether a subscription is granted; `$share` is understood. Each delivery is asked for again
    /// ([`Identity::acl`]).
    pub(crate) fn may_subscribe(&self, subscription: &str) -> bool {
        self.acl.as_ref().is_none_or(|acl| acl.may_subscribe(subscription))
    }

    /// When the connection must end, microseconds since 1970.
    pub(crate) fn valid_until_us(&self) -> Option<i64> {
        self.valid_until_us
    }

    /// How many messages may come, if that is limited.
    pub(crate) fn rate(&self) -> Option<RateLimit> {
        self.rate_max.map(|max| RateLimit::new(max, Instant::now()))
    }
}
