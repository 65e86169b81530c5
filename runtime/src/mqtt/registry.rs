//! Which connection speaks for which client id: the newest, as MQTT demands.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    clients: HashMap<String, (u64, oneshot::Sender<()>)>,
}

/// All identified connections of one endpoint. At most `connections_max` entries, because every
/// entry belongs to an open connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registry(Arc<Mutex<Entries>>);

/// A connection's place in the registry; leaving it gives up the place.
#[derive(Debug)]
pub(crate) struct Place {
    registry: Registry,
    client_id: String,
    number: u64,
    /// Resolves when a newer connection takes the client id.
    pub(crate) taken: oneshot::Receiver<()>,
}

impl Registry {
    /// Enters a connection, telling an older one of the same client id to close.
    pub(crate) fn enter(&self, client_id: &str) -> Place {
        let (taker, taken) = oneshot::channel();
        let mut entries = self.lock();
        entries.next += 1;
        let number = entries.next;
        if let Some((_, older)) = entries.clients.insert(client_id.to_owned(), (number, taker)) {
            // An error means that the older one has just ended by itself.
            let _ = older.send(());
        }
        drop(entries);
        Place { registry: self.clone(), client_id: client_id.to_owned(), number, taken }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut entries = self.registry.lock();
        if entries.clients.get(&self.client_id).is_some_and(|(n, _)| *n == self.number) {
            entries.clients.remove(&self.client_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_connection_holds_the_name() {
        let registry = Registry::default();
        let mut first = registry.enter("a");
        let mut other = registry.enter("b");
        let mut second = registry.enter("a");
        assert_eq!(first.taken.try_recv(), Ok(()));
        drop(first);
        assert!(second.taken.try_recv().is_err() && other.taken.try_recv().is_err());
        assert_eq!(registry.lock().clients.len(), 2);
        drop(second);
        drop(other);
        assert!(registry.lock().clients.is_empty());
    }
}
