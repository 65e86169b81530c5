//! Messages as a source delivered them: untouched bytes plus what the source knew about them.

use bytes::Bytes;

/// Where one message lies in [`Messages::data`] and what the source said of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageMeta {
    /// Start of the topic in the shared buffer, bytes.
    pub topic_start: u32,
    /// Length of the topic, bytes.
    pub topic_len: u32,
    /// Start of the payload in the shared buffer, bytes.
    pub payload_start: u32,
    /// Length of the payload, bytes.
    pub payload_len: u32,
    /// Start of the client id of the sender (empty where the source does not know it), bytes.
    pub client_start: u32,
    /// Length of the client id, bytes.
    pub client_len: u32,
    /// Start of the MQTT 5 properties of the PUBLISH as they were sent, without their length
    /// (empty where there are none), bytes.
    pub properties_start: u32,
    /// Length of the properties, bytes.
    pub properties_len: u32,
    /// When Tidegate received it, microseconds since the Unix epoch (UTC).
    pub received_us: i64,
    /// MQTT packet identifier; 0 at QoS 0.
    pub packet_id: u16,
    /// MQTT quality of service, 0 to 2.
    pub qos: u8,
    /// The MQTT DUP flag.
    pub duplicate: bool,
    /// The source has taken this message before, for certain (QoS 2, not released yet): it is not
    /// journaled again, and counts as repeated.
    pub known: bool,
    /// The MQTT RETAIN flag.
    pub retain: bool,
    /// Not a message of a device but what a source has to say of its sessions
    /// (see [`crate::event`]); no pipeline decodes it.
    pub event: bool,
    /// The source found that this cannot be a message (a row of a file that is cut): it becomes a
    /// row of `system.rejects`. The properties are the reason, as text for people.
    pub refused: bool,
    /// Which connection of its source brought it, where one source has several sessions with one
    /// peer; packet identifiers are unique within (source, session, client id).
    pub session: u16,
}

impl MessageMeta {
    /// The same message, its parts `shift` bytes further on in the buffer.
    #[must_use]
    pub fn shifted(&self, shift: u32) -> Self {
        Self {
            topic_start: self.topic_start + shift,
            payload_start: self.payload_start + shift,
            client_start: self.client_start + shift,
            properties_start: self.properties_start + shift,
            ..*self
        }
    }
}

/// A run of messages of one source, in journal order, sharing one buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// Index of the source in the running plan.
    pub source: u16,
    /// Journal offset of the first message; message `i` has offset `first_offset + i`.
    pub first_offset: u64,
    /// Topics, payloads, client ids and properties.
    pub data: Bytes,
    /// One entry per message.
    pub index: Vec<MessageMeta>,
}

impl Messages {
    /// Number of messages.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The topic of message `i`; MQTT demands UTF-8, which the decoder checks.
    pub fn topic(&self, i: usize) -> &[u8] {
        let m = &self.index[i];
        &self.data[m.topic_start as usize..][..m.topic_len as usize]
    }

    /// The payload of message `i`.
    pub fn payload(&self, i: usize) -> &[u8] {
        let m = &self.index[i];
        &self.data[m.payload_start as usize..][..m.payload_len as usize]
    }

    /// The sender's client id of message `i`, empty where unknown.
    pub fn client(&self, i: usize) -> &[u8] {
        let m = &self.index[i];
        &self.data[m.client_start as usize..][..m.client_len as usize]
    }

    /// The MQTT 5 properties of message `i`, undecoded; empty where there are none.
    pub fn properties(&self, i: usize) -> &[u8] {
        let m = &self.index[i];
        &self.data[m.properties_start as usize..][..m.properties_len as usize]
    }

    /// Joins runs of one source that follow each other without a gap into one.
    ///
    /// # Panics
    /// If there is none, or they do not follow each other.
    pub fn join(runs: &[std::sync::Arc<Self>]) -> Self {
        let first = &runs[0];
        let mut next = first.first_offset;
        for run in runs {
            assert_eq!(run.source, first.source, "runs of one source");
            assert_eq!(run.first_offset, next, "no gap");
            next += run.len() as u64;
        }
        Self::concat(runs.iter().map(std::sync::Arc::as_ref), first.first_offset)
    }

    /// Puts runs of one source behind each other; the first message gets offset `first_offset`.
    pub fn concat<'a>(runs: impl Iterator<Item = &'a Self> + Clone, first_offset: u64) -> Self {
        let mut data = Vec::with_capacity(runs.clone().map(|r| r.data.len()).sum());
        let mut index = Vec::with_capacity(runs.clone().map(Self::len).sum());
        let mut source = 0;
        for run in runs {
            source = run.source;
            let shift = data.len() as u32;
            data.extend_from_slice(&run.data);
            index.extend(run.index.iter().map(|m| m.shifted(shift)));
        }
        Self { source, first_offset, data: data.into(), index }
    }

    /// Bytes held, for budgets.
    pub fn size_bytes(&self) -> usize {
        self.data.len() + self.index.len() * size_of::<MessageMeta>()
    }
}

/// Collects messages into one buffer.
#[derive(Debug, Default)]
pub struct MessagesBuilder {
    data: Vec<u8>,
    index: Vec<MessageMeta>,
}

impl MessagesBuilder {
    /// Makes room for exactly so many more bytes and messages, for callers that count their memory.
    pub fn reserve(&mut self, data_bytes: usize, messages: usize) {
        self.data.reserve_exact(data_bytes);
        self.index.reserve_exact(messages);
    }

    /// Appends one message; positions in `meta` are overwritten, the rest is kept.
    pub fn push(&mut self, topic: &[u8], payload: &[u8], client: &[u8], meta: MessageMeta) {
        self.push_with(topic, payload, client, &[], meta);
    }

    /// [`MessagesBuilder::push`] with the MQTT 5 properties of the message.
    pub fn push_with(
        &mut self,
        topic: &[u8],
        payload: &[u8],
        client: &[u8],
        properties: &[u8],
        meta: MessageMeta,
    ) {
        let mut put = |bytes: &[u8]| {
            let start = self.data.len() as u32;
            self.data.extend_from_slice(bytes);
            (start, bytes.len() as u32)
        };
        let (topic_start, topic_len) = put(topic);
        let (payload_start, payload_len) = put(payload);
        let (client_start, client_len) = put(client);
        let (properties_start, properties_len) = put(properties);
        self.index.push(MessageMeta {
            topic_start,
            topic_len,
            payload_start,
            payload_len,
            client_start,
            client_len,
            properties_start,
            properties_len,
            ..meta
        });
    }

    /// Number of messages so far.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes of topics, payloads and client ids so far. A caller keeps this below 4 GiB; the
    /// journal's frame limit is far lower.
    pub fn data_bytes(&self) -> usize {
        self.data.len()
    }

    /// Takes what was collected, as messages of `source` starting at journal offset `first_offset`.
    pub fn finish(&mut self, source: u16, first_offset: u64) -> Messages {
        Messages {
            source,
            first_offset,
            data: Bytes::from(std::mem::take(&mut self.data)),
            index: std::mem::take(&mut self.index),
        }
    }
}
