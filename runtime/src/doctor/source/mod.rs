//! `tidegate doctor source`: tries a broker out with sessions of its own, and says what of it would
//! lose, double or slow down messages, and which line of its configuration to change.
//!
//! It works as a client like any other: nothing of what it finds comes from a broker's word alone
//! where it could be tried. It never touches the product's own session and leaves nothing behind.

mod advice;
mod client;
mod measure;
mod queue;

use std::time::Duration;

use tokio::time::Instant;

use super::lines::FileText;
use super::report::{Report, Verdicts};
use crate::mqtt::SubscriberConfig;
use crate::mqtt::subscriber::dial::Target;
use advice::{Advice, Kind};
use client::Client;

/// What may be chosen.
#[derive(Clone, Debug)]
pub struct Options {
    /// Topic for test messages; something of its own below it is used.
    pub topic: String,
    /// Messages that are queued for a session that is away.
    pub messages: u32,
    /// The broker's own configuration, so that its lines can be named.
    pub broker: Option<FileText>,
}

impl Default for Options {
    fn default() -> Self {
        Self { topic: "tidegate/doctor".to_owned(), messages: 2000, broker: None }
    }
}

const VERDICTS: Verdicts = [
    "this broker keeps what it has acknowledged, as far as it can be tried",
    "usable; the warnings say what would make it better",
    "not reliable as it is: change the lines above and run the doctor again",
];

/// Longest wait for one answer of the broker.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long nothing must come for "that was all".
const SILENCE: Duration = Duration::from_secs(2);

/// How long the broker shall keep the test session, seconds: a doctor that was interrupted leaves
/// nothing for longer.
const SESSION_EXPIRY_S: u32 = 600;

/// One examination.
struct Examination<'a> {
    config: SubscriberConfig,
    target: Target,
    options: &'a Options,
    /// Of this run only.
    receiver: String,
    sender: String,
    topic: String,
    advice: Advice,
    report: Report,
}

/// Tries out the broker of `config`, which is that of the pipeline in `file`.
pub async fn examine(
    name: &str,
    config: &SubscriberConfig,
    file: Option<&FileText>,
    options: &Options,
) -> Report {
    let mut report = Report::new(name, VERDICTS);
    let target = match Target::new(config) {
        Ok(target) => target,
        Err(error) => {
            report.fail("settings", &error.to_string(), &[]);
            return report;
        }
    };
    let mut random = [0; 4];
    // Without randomness two doctors at the same time would disturb each other, no more.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random);
    let run = format!("{:08x}", u32::from_be_bytes(random));
    let mut examination = Examination {
        config: config.clone(),
        target,
        options,
        receiver: format!("tidegate-doctor-{run}-r"),
        sender: format!("tidegate-doctor-{run}-s"),
        topic: format!("{}/{run}", options.topic.trim_end_matches('/')),
        advice: Advice {
            kind: Kind::Unknown,
            pipeline: file.cloned(),
            broker: options.broker.clone(),
        },
        report,
    };
    // What stops an examination is a row already, or becomes one here.
    if let Err(text) = examination.run().await {
        examination.report.fail("examination", &text, &[]);
    }
    examination.clean_up().await;
    examination.report
}

impl Examination<'_> {
    async fn run(&mut self) -> Result<(), String> {
        let Some(receiver) = self.reach().await else { return Ok(()) };
        self.advice.kind = self.look_at_system(receiver).await?;
        self.look_at_filters().await?;
        self.session().await?;
        if self.report.failed("session") {
            // Without a session there is no queue to look at.
            return self.measure().await;
        }
        self.queue().await?;
        self.measure().await?;
        self.restart();
        Ok(())
    }

    async fn connect(&self, client_id: &str, clean: bool) -> Result<(Client, bool), String> {
        let expiry = if clean { 0 } else { SESSION_EXPIRY_S };
        let opened = Client::connect(&self.target, &self.config, client_id, clean, expiry).await?;
        Ok((opened.0, opened.1.session_present))
    }

    /// Address, TLS, credentials, version, and what the CONNACK says.
    async fn reach(&mut self) -> Option<Client> {
        let begin = Instant::now();
        let mut opened = self.first_connection().await;
        if self.config.version5 && opened.as_ref().is_err_and(|e| e.contains("MQTT 5")) {
            self.config.version5 = false;
            let text = "the broker does not speak MQTT 5; the rest was tried with 3.1.1";
            let line = self.advice.pipeline("source", "version", "version = \"3.1.1\"");
            self.report.fail("version", text, &[&line]);
            opened = self.first_connection().await;
        }
        let (client, accepted) = match opened {
            Ok(opened) => opened,
            Err(text) => {
                let lines = self.advice.reach(&text);
                self.report.fail("connection", &text, &texts(&lines));
                return None;
            }
        };
        let took = begin.elapsed().as_millis();
        let layers = match self.config.url.split(':').next() {
            Some("mqtts" | "wss") => "TLS, ",
            _ => "",
        };
        let version = if self.config.version5 { "5" } else { "3.1.1" };
        let measured = format!("{layers}CONNECT and CONNACK of MQTT {version} in {took} ms");
        self.report.ok("connection", &measured);
        let share = self.config.share.is_some();
        if share && accepted.no_shared {
            let text = "the broker has no shared subscriptions";
            let line = self.advice.pipeline("source", "share", "remove `share`");
            self.report.fail("share", text, &[&line]);
        }
        if let Some(qos) = accepted.qos_max.filter(|qos| *qos < self.config.qos) {
            let line = self.advice.pipeline("source", "qos", &format!("qos = {qos}"));
            self.report.fail("qos", &format!("the broker has no more than QoS {qos}"), &[&line]);
        }
        if let Some(limit) = accepted.packet_bytes_max {
            self.report.note("packets", &format!("at most {limit} bytes"));
        }
        Some(client)
    }

    async fn first_connection(
        &self,
    ) -> Result<(Client, crate::mqtt::subscriber::packets::Accepted), String> {
        Client::connect(&self.target, &self.config, &self.receiver, true, 0).await
    }

    /// Whether the broker keeps a session, and for how long.
    async fn session(&mut self) -> Result<(), String> {
        let expiry = self.config.session_expiry_s;
        // With the expiry that the product asks for; the next connection shortens it.
        let (mut client, accepted) =
            Client::connect(&self.target, &self.config, &self.receiver, false, expiry).await?;
        let code = client.subscribe(&format!("{}/#", self.topic), self.config.qos.max(1)).await?;
        if code > 2 {
            let text = format!("SUBSCRIBE to `{}/#` is refused (0x{code:02x})", self.topic);
            let lines = ["choose a topic that this user may use: --topic"];
            self.report.fail("test topic", &text, &lines);
            return Err("nothing more can be tried without a test topic".to_owned());
        }
        match code >= self.config.qos {
            true => self.report.ok("qos", &format!("QoS {} is granted", code)),
            false => {
                let line = self.advice.pipeline("source", "qos", &format!("qos = {code}"));
                let lines = ["let this user subscribe at a higher QoS, or", line.as_str()];
                self.report.fail("qos", &format!("only QoS {code} is granted"), &lines);
            }
        }
        client.leave().await;
        let (client, present) = self.connect(&self.receiver.clone(), false).await?;
        client.leave().await;
        let kept = accepted.session_expiry_s.unwrap_or(expiry);
        match (present, kept < expiry) {
            (false, _) => {
                let text = "the broker forgets a session when its connection ends: what is \
                            published while Tidegate is away is lost";
                self.report.fail("session", text, &texts(&self.advice.session()));
            }
            (true, true) => {
                let text = format!("kept for {kept} s only, instead of {expiry} s");
                self.report.warn("session", &text, &texts(&self.advice.session()));
            }
            (true, false) => self.report.ok("session", "kept while we are away"),
        }
        Ok(())
    }

    /// The pipeline's own filters, with a session that ends with its connection.
    async fn look_at_filters(&mut self) -> Result<(), String> {
        if self.config.filters.is_empty() {
            return Ok(());
        }
        if self.config.share.is_some() {
            let text = "not tried: a member more of the group would take messages away";
            self.report.note("topics", text);
            return Ok(());
        }
        let (mut client, _) = self.connect(&self.receiver.clone(), true).await?;
        let mut refused = Vec::new();
        for filter in self.config.filters.clone() {
            let code = client.subscribe(&filter, 0).await?;
            if code > 2 {
                refused.push(format!("`{filter}` (0x{code:02x})"));
            }
        }
        let retained = client.count_retained(Duration::from_millis(500)).await?;
        client.leave().await;
        match refused.is_empty() {
            true => self.report.ok("topics", "all filters of the pipeline are granted"),
            false => {
                let lines = ["let this user read these topics (mosquitto: acl_file)"];
                self.report.fail("topics", &format!("refused: {}", refused.join(", ")), &lines);
            }
        }
        if retained > 0 {
            let text = format!(
                "{retained} or more come on each new subscription; `retained = \"{}\"`",
                match self.config.retained {
                    crate::mqtt::RetainedPolicy::Drop => "drop",
                    crate::mqtt::RetainedPolicy::State => "state",
                    crate::mqtt::RetainedPolicy::Process => "process",
                }
            );
            match self.config.retained {
                crate::mqtt::RetainedPolicy::Process => {
                    let new = "retained = \"state\"   (counts each once)";
                    let line = self.advice.pipeline("source", "retained", new);
                    self.report.warn("retained", &text, &[&line]);
                }
                _ => self.report.note("retained", &text),
            }
        }
        Ok(())
    }

    /// What cannot be tried from outside.
    fn restart(&mut self) {
        let lines = self.advice.restart();
        if let (true, Some(file)) = (lines.is_empty(), &self.advice.broker) {
            let text = format!("{} says that queues survive a crash", file.path.display());
            return self.report.ok("restart", &text);
        }
        let text = "not tried: whether the broker's queues survive its own crash";
        self.report.check("restart", text, &texts(&lines));
    }

    /// Ends the test sessions, whatever state they are in.
    async fn clean_up(&self) {
        for client_id in [&self.receiver, &self.sender] {
            if let Ok((client, _)) = self.connect(client_id, true).await {
                client.leave().await;
            }
        }
    }
}

/// As a report takes them.
fn texts(lines: &[String]) -> Vec<&str> {
    lines.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests;
