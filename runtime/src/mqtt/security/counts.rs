//! How many connections an address or a user has, and whose a client id is at present.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Open connections by key. As many entries as there are connections at most.
#[derive(Debug)]
pub(crate) struct Counts<K: Eq + Hash>(Mutex<HashMap<K, usize>>);

/// One connection in [`Counts`]; dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Counted<K: Clone + Eq + Hash> {
    counts: Arc<Counts<K>>,
    key: K,
}

impl<K: Clone + Eq + Hash> Counts<K> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    /// One more, if there are less than `max`.
    pub(crate) fn enter(self: &Arc<Self>, key: K, max: usize) -> Option<Counted<K>> {
        let mut counts = lock(&self.0);
        let count = counts.get(&key).copied().unwrap_or(0);
        if count >= max {
            return None;
        }
        counts.insert(key.clone(), count + 1);
        Some(Counted { counts: Arc::clone(self), key })
    }
}

impl<K: Clone + Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts.0);
        match counts.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&self.key)),
        }
    }
}

/// The user of each client id that is connected: nobody takes over another one's session.
#[derive(Debug, Default)]
pub(crate) struct Owners(Mutex<HashMap<String, (String, usize)>>);

/// One connection in [`Owners`].
#[derive(Debug)]
pub(crate) struct Owned {
    owners: Arc<Owners>,
    client_id: String,
}

impl Owners {
    /// Enters a connection; `None` if another user has the client id.
    pub(crate) fn enter(self: &Arc<Self>, client_id: &str, user: &str) -> Option<Owned> {
        let mut owners = lock(&self.0);
        match owners.get_mut(client_id) {
            Some((owner, _)) if owner != user => return None,
            Some((_, count)) => *count += 1,
            None => drop(owners.insert(client_id.to_owned(), (user.to_owned(), 1))),
        }
        Some(Owned { owners: Arc::clone(self), client_id: client_id.to_owned() })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let mut owners = lock(&self.owners.0);
        match owners.get_mut(&self.client_id) {
            Some((_, count)) if *count > 1 => *count -= 1,
            _ => drop(owners.remove(&self.client_id)),
        }
    }
}

/// Who an address is to us: with IPv6 one customer has a whole /64.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nobody panics half-way through a change of these maps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn places_are_given_back() {
        let counts = Counts::new();
        let first = counts.enter("a", 2).unwrap();
        let second = counts.enter("a", 2).unwrap();
        assert!(counts.enter("a", 2).is_none());
        let other = counts.enter("b", 2).unwrap();
        drop(first);
        let third = counts.enter("a", 2).unwrap();
        drop((second, third, other));
        assert!(lock(&counts.0).is_empty());
    }

    #[test]
    fn a_client_id_belongs_to_one_user_while_it_is_connected() {
        let owners = Arc::new(Owners::default());
        let first = owners.enter("pump", "ann").unwrap();
        let second = owners.enter("pump", "ann").unwrap();
        assert!(owners.enter("pump", "bob").is_none());
        drop(first);
        assert!(owners.enter("pump", "bob").is_none());
        drop(second);
        drop(owners.enter("pump", "bob").unwrap());
        assert!(lock(&owners.0).is_empty());
    }

    #[test]
    fn networks_of_version_6_are_one() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(network(ip("2001:db8:1:2:3::4")), ip("2001:db8:1:2::"));
        assert_ne!(network(ip("2001:db8:1:3::4")), ip("2001:db8:1:2::"));
        assert_eq!(network(ip("::ffff:10.0.0.1")), ip("10.0.0.1"));
    }
}
