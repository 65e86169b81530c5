//! z-score against an exponentially weighted mean and variance (Finch, "Incremental calculation of
//! weighted mean and variance", 2009). A reading is judged by the state before it, then learnt,
//! also if it was found: a lasting change becomes the new normal.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type};

use super::method::{Method, MethodStates, Verdict};
use crate::operator::OperatorError;
use crate::slabs::Slabs;

#[derive(Clone, Copy, Default)]
struct State {
    readings: u64,
    mean: f64,
    variance: f64,
}

/// Bytes of the state of one key.
pub(super) const STATE_BYTES: u64 = size_of::<State>() as u64;

/// The method `ewma_z`.
pub(super) struct EwmaZ {
    alpha: f64,
    warmup: u64,
    threshold: f64,
    states: Slabs<State>,
}

impl EwmaZ {
    pub(super) fn new(alpha: f64, warmup: u64, threshold: f64) -> Self {
        Self { alpha, warmup, threshold, states: Slabs::default() }
    }
}

impl MethodStates for Slabs<State> {
    fn columns(&self, ids: &[u32]) -> Vec<ArrayRef> {
        let states = ids.iter().map(|id| self[*id as usize]);
        vec![
            Arc::new(Int64Array::from_iter_values(states.clone().map(|s| s.readings as i64))),
            Arc::new(Float64Array::from_iter_values(states.clone().map(|s| s.mean))),
            Arc::new(Float64Array::from_iter_values(states.map(|s| s.variance))),
        ]
    }
}

impl Method for EwmaZ {
    fn name(&self) -> &'static str {
        "ewma_z"
    }

    fn start(&mut self, id: u32) {
        self.states.put(id as usize, State::default());
    }

    fn forget(&mut self, id: u32, is_last: bool) {
        self.states.forget(id as usize, is_last);
    }

    fn size_bytes(&self) -> usize {
        self.states.size_bytes()
    }

    fn judge(&mut self, ids: &[u32], values: &[f64], found: &mut Vec<Verdict>) {
        let (alpha, keep) = (self.alpha, 1.0 - self.alpha);
        for (at, (id, value)) in ids.iter().zip(values).enumerate() {
            let state = &mut self.states[*id as usize];
            let off = value - state.mean;
            if state.readings >= self.warmup && state.variance > 0.0 {
                let deviation = state.variance.sqrt();
                let score = off / deviation;
                if score.abs() > self.threshold {
                    found.push(Verdict { at, score, expected: state.mean, deviation });
                }
            }
            if state.readings == 0 {
                state.mean = *value;
            } else {
                state.mean += alpha * off;
                state.variance = keep * (state.variance + alpha * off * off);
            }
            state.readings += 1;
            // Squares beyond what a float holds would blind the key for ever: it starts again.
            if !(state.mean + state.variance).is_finite() {
                *state = State::default();
            }
        }
    }

    fn state_fields(&self) -> Vec<Field> {
        vec![
            Field::new("readings", DataType::Int64, false),
            Field::new("mean", DataType::Float64, false),
            Field::new("variance", DataType::Float64, false),
        ]
    }

    fn states(&self) -> Box<dyn MethodStates> {
        Box::new(self.states.clone())
    }

    fn load(&mut self, ids: &[u32], columns: &[ArrayRef]) -> Result<(), OperatorError> {
        let readings = columns[0].as_primitive::<Int64Type>();
        let mean = columns[1].as_primitive::<Float64Type>();
        let variance = columns[2].as_primitive::<Float64Type>();
        for (row, id) in ids.iter().enumerate() {
            self.states[*id as usize] = State {
                readings: readings.value(row) as u64,
                mean: mean.value(row),
                variance: variance.value(row),
            };
        }
        Ok(())
    }
}
