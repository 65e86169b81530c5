//! Devices that go on publishing while the process under test comes and goes, as MQTT asks of a
//! sender: what was not acknowledged when a connection broke is sent again first on the next, in
//! order, with its packet identifier and the DUP flag.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Device, Reading};

/// Messages that a device sends before it waits for an acknowledgement.
const IN_FLIGHT: usize = 32;

/// What the devices of a run and the one who disturbs it share.
#[derive(Debug, Default)]
pub(crate) struct Site {
    address: Mutex<Option<SocketAddr>>,
    acknowledged: AtomicUsize,
    enough: AtomicBool,
}

impl Site {
    /// Says where the endpoint is now, or that it is gone.
    pub(crate) fn moved(&self, to: Option<SocketAddr>) {
        *self.address.lock().unwrap() = to;
    }

    /// Messages acknowledged so far, of all devices.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Nothing new is to be published; what is in flight still has to be acknowledged.
    pub(crate) fn enough(&self) {
        self.enough.store(true, Ordering::SeqCst);
    }
}

/// What one device publishes.
#[derive(Clone, Copy)]
pub(crate) struct Traffic {
    /// Reading number `seq` of a device.
    pub(crate) reading: fn(device: &str, seq: i64) -> Reading,
    /// Most readings of one device.
    pub(crate) readings_max: i64,
    /// Between two readings of a device.
    pub(crate) pause: Duration,
}

/// What one device did.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) device: String,
    /// Readings 0 to this one (exclusive) were published and acknowledged.
    pub(crate) readings: i64,
    /// How often one of them was sent again.
    pub(crate) again: usize,
}

impl Published {
    /// All readings that were published.
    pub(crate) fn all(&self, traffic: Traffic) -> impl Iterator<Item = Reading> + '_ {
        (0..self.readings).map(move |seq| (traffic.reading)(&self.device, seq))
    }
}

/// Starts a device on a thread of its own. It ends when everything is acknowledged.
pub(crate) fn publish(device: String, traffic: Traffic, site: &Arc<Site>) -> JoinHandle<Published> {
    let site = Arc::clone(site);
    std::thread::spawn(move || {
        let mut sender = Sender {
            device,
            traffic,
            site,
            next: 0,
            next_id: 1,
            waiting: VecDeque::new(),
            again: 0,
        };
        while sender.wants_more() || !sender.waiting.is_empty() {
            let address = *sender.site.address.lock().unwrap();
            match address.and_then(|a| Device::connect(a, &sender.device).ok()) {
                Some(mut connection) => sender.publish(&mut connection),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        Published { device: sender.device, readings: sender.next, again: sender.again }
    })
}

struct Sender {
    device: String,
    traffic: Traffic,
    site: Arc<Site>,
    /// Number of the next new reading.
    next: i64,
    next_id: u16,
    /// Packet identifier and number of what is not acknowledged.
    waiting: VecDeque<(u16, i64)>,
    again: usize,
}

impl Sender {
    fn wants_more(&self) -> bool {
        self.next < self.traffic.readings_max && !self.site.enough.load(Ordering::SeqCst)
    }

    /// Until everything is acknowledged or the connection breaks.
    fn publish(&mut self, connection: &mut Device) {
        for (id, seq) in self.waiting.clone() {
            self.again += 1;
            if !self.send(connection, id, true, seq) {
                return;
            }
        }
        loop {
            while self.waiting.len() < IN_FLIGHT && self.wants_more() {
                std::thread::sleep(self.traffic.pause);
                let (id, seq) = (self.next_id, self.next);
                (self.next_id, self.next) = (id % u16::MAX + 1, seq + 1);
                self.waiting.push_back((id, seq));
                if !self.send(connection, id, false, seq) {
                    return;
                }
            }
            if self.waiting.is_empty() {
                return;
            }
            let Ok(id) = connection.acknowledged() else { return };
            let (expected, _) = self.waiting.pop_front().expect("something is waiting");
            assert_eq!(id, expected, "acknowledged out of order");
            self.site.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn send(&self, connection: &mut Device, id: u16, again: bool, seq: i64) -> bool {
        let reading = (self.traffic.reading)(&self.device, seq);
        connection.send_as(id, again, &reading.topic(), &reading.payload()).is_ok()
    }
}
