//! How much memory the state of a plan can take, step by step, from what is declared in `[limits]`.
//!
//! How much one key takes is said by the operators; here it is how many keys there are, and how
//! often each of them has a row.

mod declared;

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::utils::collect_columns;
use tidegate_operators::bound::{Bounded, Load, StateBound, Unbounded};
use tidegate_operators::spec::{KeyLimits, Origin, PipelineSpec, Shape, StepKind, WindowSpec};

pub use self::declared::{Declared, declared};
use crate::graph::versions_edge;

/// What has the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// What repetitions are recognised by.
    Dedup,
    /// What is known of clocks.
    Skew,
    /// The history of a registry.
    Registry,
    /// A step.
    Step,
    /// An alert.
    Alert,
}

/// The most that something in a pipeline keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State<'p> {
    /// What it is.
    pub what: What,
    /// Its name.
    pub name: &'p str,
    /// Number of keys.
    pub keys: u64,
    /// Whether somebody said it; else it is what a step admits by default.
    pub keys_said: bool,
    /// Bytes of one key.
    ///
    /// # Errors
    /// Why there is no bound.
    pub per_key: Result<u64, Unbounded>,
    /// Bytes of what stays of a key that was forgotten; 0 without a bound.
    pub forgotten: u64,
    /// Bytes of all keys, and as many that were forgotten.
    ///
    /// # Errors
    /// Why there is no bound.
    pub total: Result<u64, Unbounded>,
}

/// Everything in a pipeline that has state.
pub fn bounds(pipeline: &PipelineSpec) -> Vec<State<'_>> {
    // Without `..`, so that whatever is new in a pipeline is thought of here.
    let PipelineSpec {
        name: _,
        sql_name: _,
        declared: _,
        decode: _,
        // A log of a few hundred rows.
        outages: _,
        dedup,
        skew,
        // Which of their entries were refused is not counted: it is less than a megabyte.
        registries,
        steps,
        alerts,
        tables: _,
    } = pipeline;
    let scale = Scale { pipeline };
    let readings = scale.readings();
    let mut all = Vec::new();
    let of_devices = |limits: KeyLimits| Keys { names: vec!["device"], limits };
    if let Some(dedup) = dedup {
        let of = of_devices(dedup.limits);
        all.push(scale.state(What::Dedup, "reading.dedup", &of, readings.into(), dedup));
    }
    if let Some(skew) = skew {
        let of = of_devices(skew.limits);
        all.push(scale.state(What::Skew, "clock_skew", &of, readings.into(), skew));
    }
    let of_readings = Flow::of(readings, vec!["device"]);
    let mut flows: BTreeMap<String, Flow<'_>> = [("readings".to_owned(), of_readings)].into();
    for registry in registries {
        let names: Vec<_> =
            registry.columns[..registry.keys].iter().map(|c| c.name.as_str()).collect();
        let of = Keys { names: names.clone(), limits: KeyLimits::default() };
        all.push(scale.state(What::Registry, &registry.name, &of, readings.into(), registry));
        let load = Load { every_us: None, ..readings };
        flows.insert(versions_edge(&registry.name), Flow::of(load, names));
    }
    for step in steps {
        let flow = flows.get(&step.from).unwrap_or(&flows["readings"]);
        let of = keys_of(&step.kind);
        if let Some(of) = &of {
            let loads = scale.loads(flow, &of.names);
            let both = match &step.kind {
                StepKind::Join(join) if !join.is_of_windows() => {
                    let with = flows.get(&join.with).unwrap_or(&flows["readings"]);
                    loads.and(scale.loads(with, &names(&join.right, &join.right_keys)))
                }
                _ => loads,
            };
            all.push(scale.state(What::Step, &step.name, of, both, &step.kind));
        }
        let output = scale.output(&step.kind, flow, of);
        match &step.kind {
            StepKind::Route(route) => {
                flows.extend(route.branches.iter().map(|(name, _)| (name.clone(), output.clone())));
            }
            _ => drop(flows.insert(step.name.clone(), output)),
        }
    }
    for (from, alert) in alerts {
        let flow = flows.get(from).unwrap_or(&flows["readings"]);
        let of = Keys { names: names(&alert.input, &alert.keys), limits: alert.limits };
        let loads = scale.loads(flow, &of.names);
        all.push(scale.state(What::Alert, &alert.name, &of, loads, alert));
    }
    all
}

/// What is known of the rows of an edge.
#[derive(Clone)]
struct Flow<'p> {
    /// How often a key has one.
    load: Load,
    /// The columns that make such a key.
    keys: Vec<&'p str>,
    /// Rows that one reading can be part of: windows overlap.
    of_reading: i64,
    /// How long before a row the reading can be that it comes of, microseconds.
    gathered_us: i64,
}

impl<'p> Flow<'p> {
    fn of(load: Load, keys: Vec<&'p str>) -> Self {
        Self { load, keys, of_reading: 1, gathered_us: 0 }
    }
}

/// How often there are rows for something with state.
#[derive(Clone, Copy)]
struct Loads {
    /// Of one of its keys.
    own: Load,
    /// Of one device, where a key has the rows of many.
    apart: Option<Load>,
}

impl From<Load> for Loads {
    fn from(own: Load) -> Self {
        Self { own, apart: None }
    }
}

impl Loads {
    /// Of the quicker of two edges; without a rate if one has none.
    fn and(self, other: Self) -> Self {
        let quicker = |a: Load, b: Load| Load {
            every_us: a.every_us.zip(b.every_us).map(|(a_us, b_us)| a_us.min(b_us)),
            burst_us: a.burst_us.max(b.burst_us),
            ..a
        };
        let apart = |loads: Self| loads.apart.unwrap_or(loads.own);
        let is_apart = self.apart.or(other.apart).is_some();
        Self {
            own: quicker(self.own, other.own),
            apart: is_apart.then(|| quicker(apart(self), apart(other))),
        }
    }
}

/// The keys of something with state.
struct Keys<'p> {
    names: Vec<&'p str>,
    limits: KeyLimits,
}

fn names<'p>(schema: &'p SchemaRef, keys: &[usize]) -> Vec<&'p str> {
    keys.iter().map(|k| schema.field(*k).name().as_str()).collect()
}

/// The keys of a step; none of one without state.
fn keys_of(kind: &StepKind) -> Option<Keys<'_>> {
    match kind {
        StepKind::Filter(_) | StepKind::Project(_) | StepKind::Route(_) => None,
        StepKind::Window(w) => Some(Keys { names: names(&w.input, &w.keys), limits: w.limits }),
        StepKind::Detect(d) => Some(Keys { names: names(&d.input, &d.keys), limits: d.limits }),
        StepKind::Latest(l) => Some(Keys { names: names(&l.input, &l.keys), limits: l.limits }),
        StepKind::Sequence(s) => Some(Keys { names: names(&s.input, &s.keys), limits: s.limits }),
        StepKind::Absence(a) => Some(Keys { names: names(&a.input, &a.keys), limits: a.limits }),
        StepKind::Join(j) => Some(Keys { names: names(&j.left, &j.left_keys), limits: j.limits }),
        StepKind::Enrich(e) => {
            Some(Keys { names: names(&e.input, &e.on), limits: KeyLimits::default() })
        }
    }
}

/// How many there are of what in a pipeline.
struct Scale<'p> {
    pipeline: &'p PipelineSpec,
}

impl<'p> Scale<'p> {
    fn readings(&self) -> Load {
        let declared = &self.pipeline.declared;
        let (every_us, text_bytes) = (declared.reading_every_us, declared.text_bytes);
        Load { every_us, burst_us: 0, text_bytes }
    }

    /// How often a key of these columns has a row of an edge. If one such key has the rows of
    /// several of the edge's, as often as there are readings: no row comes of nothing. But what
    /// comes of the readings of some time may come at the end of it, all at once.
    fn loads(&self, flow: &Flow<'_>, names: &[&str]) -> Loads {
        let with_device = names.contains(&"device");
        let is_named = |key: &&str| names.contains(key) || with_device && self.is_looked_up(key);
        if flow.keys.iter().all(is_named) {
            return flow.load.into();
        }
        let every_us = flow.load.every_us.and(self.readings().every_us);
        let gathered = Load { every_us, burst_us: flow.gathered_us, ..flow.load };
        let of_device = faster(gathered, flow.of_reading);
        if with_device {
            return of_device.into();
        }
        // At worst it has the rows of all devices.
        let own = match self.pipeline.declared.devices {
            Some(devices) => faster(of_device, devices.try_into().unwrap_or(i64::MAX)),
            None => Load { every_us: None, ..of_device },
        };
        Loads { own, apart: Some(of_device) }
    }

    /// The rows that come out of a step with these keys.
    fn output(&self, kind: &StepKind, flow: &Flow<'p>, of: Option<Keys<'p>>) -> Flow<'p> {
        // Without state of rows, or row by row: they belong to whom they belonged to.
        let keys = match (kind, of) {
            (StepKind::Enrich(_), _) | (_, None) => flow.keys.clone(),
            (_, Some(of)) => of.names,
        };
        let (overlap, gathered_us) = match kind {
            StepKind::Window(WindowSpec { shape, .. }) => {
                let overlap = match shape {
                    Shape::Grid { size_us, slide_us, .. } => (size_us - 1) / (*slide_us).max(1) + 1,
                    _ => 1,
                };
                (overlap, shape.gathers_us())
            }
            _ => (1, 0),
        };
        Flow {
            load: kind.output_load(&self.loads(flow, &keys).own),
            keys,
            of_reading: flow.of_reading.saturating_mul(overlap),
            gathered_us: flow.gathered_us.saturating_add(gathered_us),
        }
    }

    /// Whether a device has one value of a column.
    fn is_of_device(&self, name: &str) -> bool {
        let columns = &self.pipeline.decode.columns;
        let is_capture = |origin: &Origin| matches!(origin, Origin::Capture(_));
        name == "device" || columns.iter().any(|c| c.name == name && is_capture(&c.origin))
    }

    /// The columns that registries say of devices, each with the name of the registry and how many
    /// values a device can have: one at a time.
    fn looked_up(&self) -> Vec<(&'p str, &'p str, u64)> {
        let mut known: Vec<(&str, &str, u64)> = Vec::new();
        for step in &self.pipeline.steps {
            let StepKind::Enrich(spec) = &step.kind else { continue };
            let is_known = |name: &&str| *name == "device" || known.iter().any(|k| k.0 == *name);
            if !names(&spec.input, &spec.on).iter().all(is_known) {
                continue;
            }
            let registry = &spec.registry;
            let added = &registry.columns[registry.keys..];
            for (column, default) in spec.columns.iter().zip(&spec.defaults) {
                let of_row = default.as_ref().map(collect_columns).unwrap_or_default();
                if of_row.iter().all(|c| self.is_of_device(c.name())) {
                    let values = registry.versions_max as u64 + u64::from(default.is_some());
                    known.push((&added[*column].name, &registry.name, values));
                }
            }
        }
        let is_read = |name: &str| self.pipeline.decode.columns.iter().any(|c| c.name == name);
        known.retain(|(name, ..)| !is_read(name));
        known
    }

    /// Whether a column is what a registry says of a device: one value at a time.
    fn is_looked_up(&self, name: &str) -> bool {
        self.looked_up().iter().any(|known| known.0 == name)
    }

    /// How many keys of these columns a device has at most, if that is known.
    fn keys_of_device(&self, names: &[&str]) -> Option<u64> {
        let looked_up = self.looked_up();
        let mut registries = BTreeMap::new();
        for name in names.iter().filter(|name| !self.is_of_device(name)) {
            let (_, registry, values) = looked_up.iter().find(|known| known.0 == *name)?;
            let most = registries.entry(*registry).or_insert(*values);
            *most = (*most).max(*values);
        }
        let whole = registries.is_empty() || names.contains(&"device");
        whole.then(|| registries.into_values().fold(1, u64::saturating_mul))
    }

    fn state(
        &self,
        what: What,
        name: &'p str,
        of: &Keys<'_>,
        loads: Loads,
        spec: &impl Bounded,
    ) -> State<'p> {
        let most = of.limits.keys_max;
        let devices = self.pipeline.declared.devices;
        let of_device = self.keys_of_device(&of.names);
        let known = match of.names.as_slice() {
            [] => Some(1),
            _ => devices.zip(of_device).map(|(devices, each)| devices.saturating_mul(each)),
        };
        let keys = known.unwrap_or(most).min(most);
        let keys_said = known.is_some() || most != KeyLimits::default().keys_max;
        let (per_key, forgotten, mut total) = figures(spec.state_bound(&loads.own), keys);
        let together = match (of.names.contains(&"device"), of_device, loads.apart) {
            (true, Some(2..), _) => {
                devices.map(|devices| parted(spec, loads.own, devices.min(keys), keys))
            }
            (true, ..) | (false, _, None) => None,
            // A key has the rows of many devices. All keys together have no more than there were if
            // each device had one of its own.
            (false, Some(_), Some(apart)) => {
                let bound = spec.state_bound(&apart);
                Some(bound.map(|bound| bound.total(devices.unwrap_or(most))))
            }
            // Or several, as its readings say.
            (false, None, Some(apart)) => {
                Some(parted(spec, apart, devices.unwrap_or(most).min(keys), keys))
            }
        };
        if let (Some(Ok(together)), Ok(total)) = (together, &mut total) {
            *total = together.min(*total);
        }
        State { what, name, keys, keys_said, per_key, forgotten, total }
    }
}

/// Bytes of all keys where a device has several, to which its rows are dealt. One of them has them
/// all and the others have one row each; with twice the rows, for the room that vectors have, no
/// other deal takes more.
fn parted(spec: &impl Bounded, load: Load, devices: u64, keys: u64) -> Bytes {
    let every_us = load.every_us.map(|us| (us / 2).max(1));
    let full = spec.state_bound(&Load { every_us, ..load })?.total(devices);
    let every_us = load.every_us.map(|_| i64::MAX);
    let rest = spec.state_bound(&Load { every_us, ..load })?.total(keys.saturating_sub(devices));
    Ok(full.saturating_add(rest))
}

/// The rows of so many that each come as a load says, and maybe at one time.
fn faster(load: Load, times: i64) -> Load {
    match load.every_us {
        Some(every_us) if times > 1 => Load {
            every_us: Some((every_us / times).max(1)),
            burst_us: load.burst_us.saturating_add(every_us),
            ..load
        },
        _ => load,
    }
}

type Bytes = Result<u64, Unbounded>;

/// Of a key, of a forgotten one, and of all.
fn figures(bound: Result<StateBound, Unbounded>, keys: u64) -> (Bytes, u64, Bytes) {
    match bound {
        Ok(bound) => (Ok(bound.per_key()), bound.forgotten_bytes, Ok(bound.total(keys))),
        Err(why) => (Err(why.clone()), 0, Err(why)),
    }
}

/// A bound for people.
pub(crate) fn told(state: &State<'_>) -> String {
    match (&state.per_key, &state.total) {
        (Ok(per_key), Ok(_)) if !state.keys_said => {
            let keys = counted(state.keys);
            format!(
                "at most {} per key; nobody said that there are fewer than {keys}",
                about(*per_key)
            )
        }
        (Ok(per_key), Ok(total)) if state.keys > 1 => {
            let keys = counted(state.keys);
            // Without it the sum is not understood.
            let forgotten = match state.forgotten {
                0 => String::new(),
                bytes => format!(" and what stays of {keys} forgotten ones, {} each", about(bytes)),
            };
            let (per_key, total) = (about(*per_key), about(*total));
            format!("at most {per_key} per key, {total} for {keys} keys{forgotten}")
        }
        (Ok(per_key), Ok(_)) => format!("at most {}", about(*per_key)),
        _ => "none: it grows with readings".to_owned(),
    }
}

/// A size in the unit that suits it, to a tenth.
pub fn about(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut size = bytes as f64;
    if size < 1024.0 {
        return format!("{bytes} B");
    }
    let mut unit = "";
    for next in UNITS {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, next);
    }
    format!("{size:.1} {unit}")
}

/// A number with its thousands apart.
pub fn counted(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_terms_of_a_sum_are_all_told() {
        let bound = StateBound { key_bytes: 379, forgotten_bytes: 70, shared: None };
        let said = |bound, keys| {
            let (per_key, forgotten, total) = figures(Ok(bound), keys);
            let (what, name, keys_said) = (What::Alert, "a", true);
            told(&State { what, name, keys, keys_said, per_key, forgotten, total })
        };
        // 50 x (379 + 70) = 22,450.
        let wanted = "at most 379 B per key, 21.9 KiB for 50 keys and what stays of 50 forgotten \
                      ones, 70 B each";
        assert_eq!(said(bound, 50), wanted);
        assert_eq!(said(bound, 1), "at most 379 B");
        let bound = StateBound { forgotten_bytes: 0, ..bound };
        assert_eq!(said(bound, 50), "at most 379 B per key, 18.5 KiB for 50 keys");
    }

    #[test]
    fn sizes_and_counts_read_well() {
        assert_eq!((about(1_023), about(1_536)), ("1023 B".into(), "1.5 KiB".into()));
        assert_eq!((about(5 << 30), about(u64::MAX)), ("5.0 GiB".into(), "16.0 EiB".into()));
        assert_eq!((counted(7), counted(20_000), counted(1_234_567)).0, "7");
        assert_eq!((counted(20_000), counted(1_234_567)), ("20,000".into(), "1,234,567".into()));
    }
}
