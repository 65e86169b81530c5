//! Aggregates whose state is not of one width, and a step that gets the rows of another.

use datafusion_physical_expr::PhysicalExpr;
use tidegate_operators::distinct::in_one_order;
use tidegate_operators::spec::StepKind;

use super::*;

/// A call of an aggregate over expressions.
fn call(udf: Arc<AggregateUDF>, arguments: Vec<Arc<dyn PhysicalExpr>>) -> AggregateExprBuilder {
    AggregateExprBuilder::new(udf, arguments).schema(schema()).alias("a")
}

fn of_x(name: &str, numbers: &[f64]) -> Arc<AggregateFunctionExpr> {
    let udf = time_series().into_iter().find(|f| f.name() == name).unwrap();
    let mut arguments: Vec<Arc<dyn PhysicalExpr>> = vec![col("x", &schema()).unwrap()];
    arguments.extend(numbers.iter().map(|number| lit(*number)));
    Arc::new(call(udf, arguments).build().unwrap())
}

fn grid(size_s: i64) -> Shape {
    Shape::Grid { size_us: size_s * SECOND, slide_us: size_s * SECOND, offset_us: 0 }
}

pub(super) fn of_all_widths(report: &mut Report) {
    let longest = aggregate(max_udaf(), &["device"]);
    let set = call(count_udaf(), vec![col("x", &schema()).unwrap()]).distinct();
    let set = in_one_order(Arc::new(set.build().unwrap()), &schema()).unwrap();
    let bounds: Vec<f64> = (0..20).map(f64::from).collect();
    let cases = [
        ("greatest texts", grid(2), (1, 8), longest),
        ("distinct values", grid(20), (5, 0), set),
        ("histograms", grid(2), (1, 8), of_x("histogram", &bounds)),
        ("quantiles", grid(20), (5, 0), of_x("quantile", &[0.9])),
    ];
    for (what, shape, times, aggregate) in cases {
        let (spec, keys) = (window(shape, times, vec![aggregate]), keys(9));
        let bound = spec.state_bound(&LOAD).unwrap();
        let mut measured = Measured::new(|| WindowOperator::new(spec).unwrap());
        // So far apart that each is in a bucket of its own.
        measured.steady(keys, 60, |second| 1.1f64.powi(second as i32));
        report.compare(what, bound.per_key(), keys, &measured);
    }
}

/// Windows over windows: what the first step says of its rows is what the second one's bound is of.
pub(super) fn over_another_step(report: &mut Report) {
    let aggregated = window(grid(2), (1, 0), vec![aggregate(avg_udaf(), &["x"])]);
    let mean = col("agg0", &aggregated.aggregated_schema()).unwrap();
    let first = WindowSpec { select: vec![("mean".into(), mean)], ..aggregated };
    let input = first.schema();
    let increase = time_series().into_iter().find(|f| f.name() == "increase").unwrap();
    let arguments = ["mean", "window_start"].map(|name| col(name, &input).unwrap()).to_vec();
    let increase = AggregateExprBuilder::new(increase, arguments).schema(Arc::clone(&input));
    let increase = vec![Arc::new(increase.alias("a").build().unwrap())];
    let second = WindowSpec { input, ..window(grid(60), (10, 0), increase) };
    let load = StepKind::Window(first.clone()).output_load(&LOAD);
    assert_eq!(load.every_us, Some(2 * SECOND));
    let (bound, keys) = (second.state_bound(&load).unwrap(), keys(9));
    let mut ahead = Measured::new(|| WindowOperator::new(first.clone()).unwrap());
    let mut made = Vec::new();
    for seconds in 0..180 {
        let now_us = START_US + seconds * SECOND;
        let rows: Vec<_> = (0..keys).map(|key| (key, now_us, seconds as f64)).collect();
        let rows = batch(&rows);
        ahead.run(now_us, |operator, tick, emit| {
            operator.epoch(&rows, tick, emit).unwrap();
            made.extend(emit.rows.drain(..).map(|rows| (now_us, rows)));
        });
    }
    let mut measured = Measured::new(|| WindowOperator::new(second).unwrap());
    for (now_us, rows) in &made {
        measured.run(*now_us, |operator, tick, emit| operator.epoch(rows, tick, emit).unwrap());
    }
    report.compare("windows of windows", bound.per_key(), keys, &measured);
}
