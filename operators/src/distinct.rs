//! Aggregates over distinct values, in one order whatever the order in which the values came.
//!
//! DataFusion keeps the values in hash tables, and the order in which it reads those depends on how
//! they grew: on the other keys of a worker, and on restarts. That order would show in the bytes of
//! a checkpoint, in the last bits of `sum(DISTINCT x)` and in `array_agg(DISTINCT x)`. Here the
//! values of a group are kept in their order, and the plain aggregate gets them in it, once, when
//! the result is asked for.
//!
//! The state of a group is one list for each argument, as long as there are distinct values.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, ListArray, new_null_array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use arrow::row::{RowConverter, RowParser, SortField};
use datafusion_common::{Result, not_impl_err};
use datafusion_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature,
};
use datafusion_physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};

use crate::aggregate::create_groups_accumulator;

/// Functions to which a value that comes again means nothing: they need no set of what came.
const IDEMPOTENT: [&str; 7] =
    ["min", "max", "bit_and", "bit_or", "bool_and", "bool_or", "approx_distinct"];

/// The same call in a form whose state and result depend on the values alone; a call that is not
/// `DISTINCT`, as it is. `schema` is what the call's arguments are planned over.
///
/// # Errors
/// For `DISTINCT` together with an order, which has no such form.
pub fn in_one_order(
    aggregate: Arc<AggregateFunctionExpr>,
    schema: &SchemaRef,
) -> Result<Arc<AggregateFunctionExpr>> {
    if !aggregate.is_distinct() || IDEMPOTENT.contains(&aggregate.fun().name()) {
        return Ok(aggregate);
    }
    let name = aggregate.name();
    if !aggregate.order_bys().is_empty() {
        return not_impl_err!("DISTINCT together with ORDER BY in one aggregate");
    }
    let function = AggregateUDF::new_from_impl(Sorted(aggregate.fun().clone()));
    let builder = AggregateExprBuilder::new(Arc::new(function), aggregate.expressions())
        .schema(Arc::clone(schema))
        .alias(name)
        .with_ignore_nulls(aggregate.ignore_nulls())
        .distinct();
    Ok(Arc::new(builder.build()?))
}

/// An aggregate function over the sorted distinct values.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Sorted(AggregateUDF);

impl AggregateUDFImpl for Sorted {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.0.return_type(arguments)
    }

    fn return_field(&self, arguments: &[FieldRef]) -> Result<FieldRef> {
        self.0.return_field(arguments)
    }

    fn is_nullable(&self) -> bool {
        self.0.is_nullable()
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        not_impl_err!("{}(DISTINCT ...) without groups", self.name())
    }

    fn state_fields(&self, arguments: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let lists = arguments.input_fields.iter().enumerate().map(|(number, field)| {
            let name = format!("{}[distinct {number}]", arguments.name);
            Arc::new(Field::new(name, DataType::List(item(field.data_type())), true))
        });
        Ok(lists.collect())
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(
        &self,
        arguments: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        let types: Vec<DataType> =
            arguments.expr_fields.iter().map(|field| field.data_type().clone()).collect();
        let plain = AggregateExprBuilder::new(Arc::new(self.0.clone()), arguments.exprs.to_vec())
            .schema(Arc::new(arguments.schema.clone()))
            .alias(arguments.name)
            .with_ignore_nulls(arguments.ignore_nulls)
            .with_reversed(arguments.is_reversed)
            .build()?;
        // It would fail only when the first result is asked for.
        create_groups_accumulator(&plain)?;
        Ok(Box::new(Sets::new(plain, types)?))
    }
}

fn item(kind: &DataType) -> FieldRef {
    Arc::new(Field::new_list_field(kind.clone(), true))
}

/// The distinct values of one group, in the form of rows, which sorts as the values do.
type Set = BTreeSet<Box<[u8]>>;

struct Sets {
    plain: AggregateFunctionExpr,
    types: Vec<DataType>,
    converter: RowConverter,
    parser: RowParser,
    /// A row of nulls.
    none: Box<[u8]>,
    sets: Vec<Set>,
}

fn insert(set: &mut Set, value: &[u8]) {
    if !set.contains(value) {
        set.insert(value.into());
    }
}

impl Sets {
    fn new(plain: AggregateFunctionExpr, types: Vec<DataType>) -> Result<Self> {
        let converter = RowConverter::new(types.iter().cloned().map(SortField::new).collect())?;
        let parser = converter.parser();
        let nulls: Vec<ArrayRef> = types.iter().map(|kind| new_null_array(kind, 1)).collect();
        let none = converter.convert_columns(&nulls)?.row(0).as_ref().into();
        Ok(Self { plain, types, converter, parser, none, sets: Vec::new() })
    }

    fn grow(&mut self, groups: usize) {
        self.sets.resize_with(groups.max(self.sets.len()), Set::new);
    }
}

impl GroupsAccumulator for Sets {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.grow(total);
        let rows = self.converter.convert_columns(values)?;
        for (row, group) in groups.iter().enumerate() {
            if filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                insert(&mut self.sets[*group], rows.row(row).as_ref());
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.grow(total);
        let lists: Vec<&ListArray> = states.iter().map(|state| state.as_list()).collect();
        let Some(first) = lists.first() else { return Ok(()) };
        // All lists of a group have the same length; so they begin at the same places unless one
        // of the arrays is a slice of another.
        let values: Vec<ArrayRef> = lists
            .iter()
            .map(|list| {
                let offsets = list.value_offsets();
                let (from, to) = (offsets[0] as usize, offsets[list.len()] as usize);
                list.values().slice(from, to - from)
            })
            .collect();
        let rows = self.converter.convert_columns(&values)?;
        let offsets = first.value_offsets();
        for (state, group) in groups.iter().enumerate() {
            let (from, to) = (offsets[state] - offsets[0], offsets[state + 1] - offsets[0]);
            for row in from as usize..to as usize {
                insert(&mut self.sets[*group], rows.row(row).as_ref());
            }
        }
        Ok(())
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let sets = emit_to.take_needed(&mut self.sets);
        let offsets = OffsetBuffer::<i32>::from_lengths(sets.iter().map(Set::len));
        let rows = sets.iter().flatten().map(|value| self.parser.parse(value));
        let lists = self.converter.convert_rows(rows)?.into_iter().zip(&self.types).map(
            |(values, kind)| {
                let list = ListArray::try_new(item(kind), offsets.clone(), values, None)?;
                Ok(Arc::new(list) as ArrayRef)
            },
        );
        lists.collect()
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let rows = values.first().map_or(0, |column| column.len());
        let mut each = Self::new(self.plain.clone(), self.types.clone())?;
        each.update_batch(values, &(0..rows).collect::<Vec<_>>(), filter, rows)?;
        each.state(EmitTo::All)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sets = emit_to.take_needed(&mut self.sets);
        let (mut rows, mut groups, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (group, set) in sets.iter().enumerate() {
            // Aggregates take it for granted that every group has a row: this one is filtered out.
            let none = set.is_empty().then_some(&self.none);
            rows.extend(set.iter().chain(none).map(|value| self.parser.parse(value)));
            groups.resize(rows.len(), group);
            counts.resize(rows.len(), !set.is_empty());
        }
        let values = self.converter.convert_rows(rows)?;
        let filter = BooleanArray::from(counts);
        let mut plain = create_groups_accumulator(&self.plain)?;
        plain.update_batch(&values, &groups, Some(&filter), sets.len())?;
        plain.evaluate(EmitTo::All)
    }

    fn size(&self) -> usize {
        let set = |set: &Set| set.iter().map(|value| value.len() + size_of::<Box<[u8]>>()).sum();
        self.sets.iter().map(set).map(|bytes: usize| bytes + size_of::<Set>()).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::{Float64Array, Int64Array};
    use arrow::datatypes::{Float64Type, Schema};
    use datafusion_functions_aggregate::array_agg::array_agg_udaf;
    use datafusion_functions_aggregate::average::avg_udaf;
    use datafusion_functions_aggregate::count::count_udaf;
    use datafusion_functions_aggregate::min_max::max_udaf;
    use datafusion_functions_aggregate::sum::sum_udaf;
    use datafusion_physical_expr::expressions::col;
    use proptest::prelude::*;

    use super::*;

    fn call(function: Arc<AggregateUDF>) -> Arc<AggregateFunctionExpr> {
        let schema = Arc::new(Schema::new(vec![Field::new("v", DataType::Float64, true)]));
        let builder = AggregateExprBuilder::new(function, vec![col("v", &schema).unwrap()]);
        let call = builder.schema(Arc::clone(&schema)).alias("a").distinct().build().unwrap();
        in_one_order(Arc::new(call), &schema).unwrap()
    }

    /// Values of which many are alike, and whose sum depends on its order.
    fn value(number: u8) -> Option<f64> {
        match number % 24 {
            0 => None,
            1 => Some(-0.0),
            2 => Some(1e17),
            number => Some(f64::from(number) * 0.1 - 0.3),
        }
    }

    const GROUPS: usize = 4;

    /// State of all groups after the numbers were dealt out to some accumulators, in batches.
    fn state(call: &AggregateFunctionExpr, numbers: &[(u8, usize)], parts: usize) -> Vec<ArrayRef> {
        let mut whole = create_groups_accumulator(call).unwrap();
        for part in 0..parts {
            let mine: Vec<_> = numbers.iter().skip(part).step_by(parts).collect();
            let mut one = create_groups_accumulator(call).unwrap();
            for batch in mine.chunks(5) {
                let values: Float64Array = batch.iter().map(|(v, _)| value(*v)).collect();
                let groups: Vec<usize> = batch.iter().map(|(_, group)| *group).collect();
                one.update_batch(&[Arc::new(values)], &groups, None, GROUPS).unwrap();
            }
            one.update_batch(&[Arc::new(Float64Array::from(vec![9.5]))], &[0], None, GROUPS)
                .unwrap();
            let state = one.state(EmitTo::All).unwrap();
            whole.merge_batch(&state, &[0, 1, 2, 3], GROUPS).unwrap();
        }
        whole.state(EmitTo::All).unwrap()
    }

    fn result(call: &AggregateFunctionExpr, state: &[ArrayRef]) -> ArrayRef {
        let mut last = create_groups_accumulator(call).unwrap();
        last.merge_batch(state, &[0, 1, 2, 3], GROUPS).unwrap();
        last.evaluate(EmitTo::All).unwrap()
    }

    proptest! {
        #[test]
        fn neither_order_nor_parts_show_in_state_or_result(
            numbers in prop::collection::vec((any::<u8>(), 0..GROUPS), 0..60),
            again in any::<prop::sample::Index>(),
            parts in 1usize..5,
        ) {
            let mut shuffled = numbers.clone();
            shuffled.rotate_left(again.index(numbers.len().max(1)).min(numbers.len()));
            shuffled.reverse();
            shuffled.extend(numbers.iter().take(7));
            for function in [count_udaf(), sum_udaf(), avg_udaf(), array_agg_udaf()] {
                let call = call(function);
                let (one, other) = (state(&call, &numbers, 1), state(&call, &shuffled, parts));
                prop_assert_eq!(&one, &other);
                let fields = call.state_fields().unwrap();
                prop_assert_eq!(one[0].data_type(), fields[0].data_type());
                prop_assert_eq!(&result(&call, &one), &result(&call, &other));
            }
            let mut sets = vec![BTreeSet::new(); GROUPS];
            let bits = |v: f64| (v.total_cmp(&0.0), v.to_bits());
            sets[0].insert(bits(9.5));
            for (number, group) in &numbers {
                sets[*group].extend(value(*number).map(bits));
            }
            let count = call(count_udaf());
            let counts: Int64Array = sets.iter().map(|set| Some(set.len() as i64)).collect();
            let counted = result(&count, &state(&count, &numbers, parts));
            prop_assert_eq!(counted.as_ref(), &counts as &dyn Array);
            let sum = call(sum_udaf());
            let summed = result(&sum, &state(&sum, &numbers, parts));
            for (group, set) in sets.iter().enumerate() {
                let mut values: Vec<f64> = set.iter().map(|v| f64::from_bits(v.1)).collect();
                values.sort_by(f64::total_cmp);
                let summed = summed.as_primitive::<Float64Type>();
                let expected = values.into_iter().reduce(|a, b| a + b);
                prop_assert_eq!(summed.is_valid(group).then(|| summed.value(group)), expected);
            }
        }
    }

    #[test]
    fn only_what_needs_a_set_gets_one() {
        assert!(matches!(call(max_udaf()).state_fields().unwrap()[..], [ref one]
            if *one.data_type() == DataType::Float64));
        assert!(call(count_udaf()).is_distinct());
    }
}
