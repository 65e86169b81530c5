//! Delivery under random losses: QoS 1 at least once, QoS 2 exactly once, in order.

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures::executor::block_on;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Somebody publishes with a QoS.
    Publish(u8),
    /// The client reads what the broker sends, and answers; the last packets of each way may be
    /// lost with the connection.
    Read { bytes_max: usize, answers: usize },
    /// The connection is lost after this many packets to the client arrived.
    Lose { arrived: usize, receive_maximum: u16 },
    /// Another connection takes over.
    TakeOver,
    /// The broker crashes; without a store, nothing happens.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u8..3).prop_map(Step::Publish),
        3 => (1usize..200, 0usize..10)
            .prop_map(|(bytes_max, answers)| Step::Read { bytes_max, answers }),
        1 => (0usize..5, 1u16..8)
            .prop_map(|(arrived, receive_maximum)| Step::Lose { arrived, receive_maximum }),
        1 => Just(Step::TakeOver),
        1 => Just(Step::Crash),
    ]
}

/// A client that keeps the state which the standard demands of a receiver, and nothing else.
#[derive(Default)]
struct Receiver {
    /// QoS 2 ids received and not released (4.3.3, method A).
    open: BTreeSet<u16>,
    /// Payloads by QoS, as handed to the application.
    at_least: Vec<u32>,
    exactly: Vec<u32>,
    /// Answers that have not been sent yet.
    answers: Vec<Got>,
}

impl Receiver {
    fn receive(&mut self, got: &Got) {
        match (got.release, got.qos) {
            (true, _) => {
                self.open.remove(&got.id);
            }
            (false, 1) => self.at_least.push(got.payload.parse().unwrap()),
            (false, _) => {
                if self.open.insert(got.id) {
                    self.exactly.push(got.payload.parse().unwrap());
                }
            }
        }
        self.answers.push(got.clone());
    }

    fn answer(&mut self, client: &Client, n: usize) {
        let n = n.min(self.answers.len());
        for got in self.answers.drain(..n) {
            let known = match (got.release, got.qos) {
                (true, _) => client.broker.pubcomp(&client.port, got.id),
                (false, 1) => client.broker.puback(&client.port, got.id),
                (false, _) => client.broker.pubrec(&client.port, got.id, false),
            };
            assert!(known, "{got:?}");
        }
    }
}

struct World {
    store: Option<PathBuf>,
    broker: Arc<Broker>,
    client: Option<Client>,
    receiver: Receiver,
    sent: u32,
    qos: Vec<u8>,
}

impl World {
    fn read(&mut self, bytes_max: usize, arrived: usize) {
        let Some(client) = &self.client else { return };
        let mut out = Vec::new();
        self.broker.outgoing(&client.port, &mut out, bytes_max, 0);
        for got in read_all(client.version, &out).iter().take(arrived) {
            self.receiver.receive(got);
        }
    }

    fn connect(&mut self, receive_maximum: u16) {
        let opening = Opening { receive_maximum, ..opening("c") };
        let client = Client::open(&self.broker, opening, 0);
        assert!(client.present);
        self.receiver.answers.clear();
        self.client = Some(client);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish(qos) => {
                let message = publication("t", &self.sent.to_string(), qos);
                let ticket = self.broker.publish("p", vec![message], 0);
                block_on(ticket.done()).unwrap();
                self.sent += 1;
                self.qos.push(qos);
            }
            Step::Read { bytes_max, answers } => {
                if self.client.is_none() {
                    self.connect(3);
                }
                self.read(bytes_max, usize::MAX);
                if let Some(client) = &self.client {
                    self.receiver.answer(client, answers);
                }
            }
            Step::Lose { arrived, receive_maximum } => {
                self.read(usize::MAX, arrived);
                if let Some(client) = self.client.take() {
                    client.leave(LOST, 0);
                }
                if receive_maximum > 4 {
                    self.connect(receive_maximum);
                }
            }
            Step::Crash => self.crash(),
            Step::TakeOver => {
                let old = self.client.take();
                self.connect(4);
                if let Some(old) = old {
                    old.leave(Leave::TakenOver, 0);
                }
            }
        }
    }

    fn crash(&mut self) {
        let Some(store) = &self.store else { return };
        self.client = None;
        let crashed = self.broker.lock().store.take().unwrap();
        crashed.crash();
        let options = BrokerOptions { store: Some(store.clone()), ..BrokerOptions::default() };
        self.broker = Broker::open(options, 0).unwrap();
    }

    fn finish(&mut self) {
        if self.client.is_none() {
            self.connect(100);
        }
        for _ in 0..1000 {
            block_on(self.broker.ticket().done()).unwrap();
            self.read(usize::MAX, usize::MAX);
            let client = self.client.as_ref().unwrap();
            let open = load(&self.broker.counters().queued_messages);
            if open == 0 && self.receiver.open.is_empty() && self.receiver.answers.is_empty() {
                return;
            }
            self.receiver.answer(client, usize::MAX);
        }
    }
}

/// Runs the steps; what the client got has to be right.
fn check(store: Option<PathBuf>, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let options = BrokerOptions { store: store.clone(), ..BrokerOptions::default() };
    let broker = Broker::open(options, 0).unwrap();
    let client = Client::with(&broker, "c", &["t"]);
    block_on(broker.ticket().done()).unwrap();
    let receiver = Receiver::default();
    let mut world =
        World { store, broker, client: Some(client), receiver, sent: 0, qos: Vec::new() };
    for step in steps {
        world.step(step);
    }
    world.finish();
    let of = |qos| (0..world.sent).filter(|i| world.qos[*i as usize] == qos).collect::<Vec<_>>();
    prop_assert_eq!(&world.receiver.exactly, &of(2));
    let mut firsts = Vec::new();
    for payload in &world.receiver.at_least {
        if !firsts.contains(payload) {
            firsts.push(*payload);
        }
    }
    prop_assert_eq!(firsts, of(1), "the first copies come in order, 4.6.0-6");
    prop_assert_eq!(load(&world.broker.counters().queued_messages), 0);
    prop_assert_eq!(load(&world.broker.counters().queued_bytes), 0);
    prop_assert!(world.receiver.open.is_empty());
    Ok(())
}

proptest! {
    #[test]
    fn qos_1_at_least_once_qos_2_exactly_once_and_in_order(
        steps in prop::collection::vec(step(), 1..120)
    ) {
        check(None, steps)?;
    }
}

proptest! {
    // Each case syncs a file many times.
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_same_holds_when_the_broker_crashes(steps in prop::collection::vec(step(), 1..80)) {
        let directory = tempfile::tempdir().unwrap();
        check(Some(directory.path().join("broker.redb")), steps)?;
    }
}
