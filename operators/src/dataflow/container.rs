//! [`Batch`] and runs of messages as timely containers.
//!
//! Timely's progress tracking counts records: `record_count` must say the same before and after an
//! exchange, or the dataflow never completes. Between processes a batch travels as Arrow IPC.

use std::cell::RefCell;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use timely::Accountable;
use timely::bytes::arc::Bytes;
use timely::dataflow::channels::ContainerBytes;

use crate::batch::Batch;
use crate::message::Messages;

impl Default for Batch {
    fn default() -> Self {
        Self { sequence: 0, rows: RecordBatch::new_empty(Arc::new(Schema::empty())) }
    }
}

impl Accountable for Batch {
    fn record_count(&self) -> i64 {
        self.rows.num_rows() as i64
    }
}

impl Batch {
    /// The byte form: the sequence, then an Arrow IPC stream of one batch.
    fn encode(&self) -> Vec<u8> {
        let mut out = self.sequence.to_le_bytes().to_vec();
        let mut writer = StreamWriter::try_new(&mut out, self.rows.schema_ref())
            .expect("writing to memory cannot fail");
        writer.write(&self.rows).expect("writing to memory cannot fail");
        writer.finish().expect("writing to memory cannot fail");
        drop(writer);
        out
    }
}

impl ContainerBytes for Batch {
    fn from_bytes(bytes: Bytes) -> Self {
        let (head, body) = bytes.split_at(8);
        let sequence = u64::from_le_bytes(head.try_into().expect("eight bytes"));
        let rows = StreamReader::try_new(body, None)
            .and_then(|mut reader| reader.next().expect("one batch was written"))
            .expect("a peer sent what Batch::encode wrote");
        Self { sequence, rows }
    }

    fn length_in_bytes(&self) -> usize {
        let bytes = self.encode();
        let length = bytes.len();
        ENCODED.set(Some((self.clone(), bytes)));
        length
    }

    fn into_bytes<W: std::io::Write>(&self, writer: &mut W) {
        let encoded = ENCODED.take().filter(|(of, _)| self.is(of));
        let bytes = encoded.map_or_else(|| self.encode(), |(_, bytes)| bytes);
        writer.write_all(&bytes).expect("timely hands out a buffer of the length it asked");
    }
}

thread_local! {
    /// The batch whose length was asked last, and its bytes: timely asks for the length, and then
    /// at once for the bytes.
    static ENCODED: RefCell<Option<(Batch, Vec<u8>)>> = const { RefCell::new(None) };
}

impl Batch {
    /// Whether it is the same batch, by where its columns are.
    fn is(&self, other: &Self) -> bool {
        self.sequence == other.sequence
            && self.rows.schema_ref() == other.rows.schema_ref()
            && self.rows.num_rows() == other.rows.num_rows()
            && self.rows.columns().iter().zip(other.rows.columns()).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

/// Runs of messages on their way from the feed to the decoders of the same worker.
#[derive(Clone, Debug, Default)]
pub struct MessageRuns(pub Vec<Arc<Messages>>);

impl Accountable for MessageRuns {
    fn record_count(&self) -> i64 {
        self.0.len() as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};

    #[test]
    fn a_batch_survives_the_wire() {
        let rows = RecordBatch::try_from_iter([
            ("a", Arc::new(Int64Array::from(vec![Some(1), None])) as _),
            ("b", Arc::new(StringArray::from(vec!["x", "é"])) as _),
        ])
        .expect("two columns of two rows");
        let batch = Batch { sequence: 7, rows };
        let mut wire = Vec::new();
        batch.into_bytes(&mut wire);
        assert_eq!(wire.len(), batch.length_in_bytes());
        let bytes = timely::bytes::arc::BytesMut::from(wire).freeze();
        let back = Batch::from_bytes(bytes);
        assert_eq!((back.sequence, back.rows), (batch.sequence, batch.rows));
    }

    #[test]
    fn the_bytes_are_those_of_the_batch_also_if_another_was_asked_last() {
        let batch = |sequence, value: i64| {
            let column = Arc::new(Int64Array::from(vec![value])) as _;
            let rows = RecordBatch::try_from_iter([("a", column)]).expect("one column");
            Batch { sequence, rows }
        };
        let (one, other) = (batch(1, 5), batch(1, 6));
        let length = one.length_in_bytes();
        assert_eq!(other.length_in_bytes(), length);
        let mut wire = Vec::new();
        one.into_bytes(&mut wire);
        let back = Batch::from_bytes(timely::bytes::arc::BytesMut::from(wire).freeze());
        assert_eq!(back.rows, one.rows);
    }
}
