//! `a IS DISTINCT FROM b OR c` is `(a IS DISTINCT FROM b) OR c`, as in every database.
//!
//! The parser (sqlparser 0.62, `parse_infix`) takes all that follows for the right side, also what
//! binds less closely. What stands in parentheses is a node of its own in what it makes, so the
//! tree can be put right: an operand on the right that binds less closely than its operator was
//! not meant. In a tree of a parser that does it by itself there is none.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator as B, Expr, Ident, UnaryOperator, VisitMut, VisitorMut,
};

/// How closely operators bind, as in the parser; the ones that matter here.
const OR: u8 = 5;
const AND: u8 = 10;
const NOT: u8 = 15;
const ARROW: u8 = 16;
const IS: u8 = 17;
/// All others.
const CLOSER: u8 = 18;

/// Puts right what the parser made of a statement or an expression.
pub fn regroup(parsed: &mut impl VisitMut) {
    let _ = parsed.visit(&mut Regroup);
}

struct Regroup;

impl VisitorMut for Regroup {
    type Break = ();

    /// Comes after what is in it.
    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Some((binds, operand)) = last_operand(expr)
            && is_looser(operand, binds)
        {
            let mut whole = take(operand);
            into_first(&mut whole, take(expr), binds);
            *expr = whole;
        }
        ControlFlow::Continue(())
    }
}

/// Puts `operator` around the first operand of `whole` that binds closely enough.
fn into_first(whole: &mut Expr, mut operator: Expr, binds: u8) {
    let looser = is_looser(whole, binds);
    match first_operand(whole) {
        Some((_, first)) if looser => into_first(first, operator, binds),
        _ => {
            if let Some((_, operand)) = last_operand(&mut operator) {
                *operand = take(whole);
            }
            *whole = operator;
        }
    }
}

fn is_looser(expr: &mut Expr, binds: u8) -> bool {
    first_operand(expr).is_some_and(|(own, _)| own <= binds)
}

fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, Expr::Identifier(Ident::new("")))
}

/// What an operator that binds loosely begins with, and how closely it binds.
fn first_operand(expr: &mut Expr) -> Option<(u8, &mut Expr)> {
    match expr {
        Expr::BinaryOp { left, op, .. } => {
            Some((binding(op), left.as_mut())).filter(|(binds, _)| *binds < CLOSER)
        }
        Expr::IsNull(left)
        | Expr::IsNotNull(left)
        | Expr::IsTrue(left)
        | Expr::IsNotTrue(left)
        | Expr::IsFalse(left)
        | Expr::IsNotFalse(left)
        | Expr::IsUnknown(left)
        | Expr::IsNotUnknown(left)
        | Expr::IsNormalized { expr: left, .. }
        | Expr::IsDistinctFrom(left, _)
        | Expr::IsNotDistinctFrom(left, _) => Some((IS, left.as_mut())),
        _ => None,
    }
}

/// What an operator ends with, and how closely it binds.
fn last_operand(expr: &mut Expr) -> Option<(u8, &mut Expr)> {
    match expr {
        Expr::BinaryOp { op, right, .. } => Some((binding(op), right.as_mut())),
        Expr::IsDistinctFrom(_, right) | Expr::IsNotDistinctFrom(_, right) => {
            Some((IS, right.as_mut()))
        }
        Expr::UnaryOp { op: UnaryOperator::Not, expr } => Some((NOT, expr.as_mut())),
        _ => None,
    }
}

fn binding(op: &B) -> u8 {
    match op {
        B::Or => OR,
        B::And => AND,
        B::Arrow
        | B::LongArrow
        | B::HashArrow
        | B::HashLongArrow
        | B::AtArrow
        | B::ArrowAt
        | B::HashMinus
        | B::AtQuestion
        | B::AtAt
        | B::Question
        | B::QuestionAnd
        | B::Custom(_) => ARROW,
        _ => CLOSER,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
    use proptest::prelude::*;

    use super::*;
    use crate::planner::plan_scalar;

    fn schema() -> SchemaRef {
        let columns = ["a", "b", "c", "d"].map(|name| Field::new(name, DataType::Boolean, true));
        Arc::new(Schema::new(columns.to_vec()))
    }

    fn planned(text: &str) -> String {
        plan_scalar(text, &schema(), Some(&DataType::Boolean)).unwrap().to_string()
    }

    #[test]
    fn what_follows_is_distinct_from_is_no_part_of_it() {
        for (text, meant) in [
            ("a IS DISTINCT FROM b OR c", "(a IS DISTINCT FROM b) OR c"),
            ("a IS DISTINCT FROM b AND c", "(a IS DISTINCT FROM b) AND c"),
            ("a IS NOT DISTINCT FROM b OR c", "(a IS NOT DISTINCT FROM b) OR c"),
            ("d AND a IS DISTINCT FROM b OR c", "(d AND (a IS DISTINCT FROM b)) OR c"),
            ("d OR a IS DISTINCT FROM b AND c", "d OR ((a IS DISTINCT FROM b) AND c)"),
            ("NOT a IS DISTINCT FROM b OR c", "(NOT (a IS DISTINCT FROM b)) OR c"),
            ("a IS DISTINCT FROM b = c", "a IS DISTINCT FROM (b = c)"),
            ("a IS DISTINCT FROM (b OR c)", "a IS DISTINCT FROM (b OR c)"),
            (
                "CASE WHEN a IS DISTINCT FROM b OR c THEN d END",
                "CASE WHEN (a IS DISTINCT FROM b) OR c THEN d END",
            ),
        ] {
            assert_eq!(planned(text), planned(meant), "{text}");
        }
        assert_ne!(planned("a IS DISTINCT FROM b OR c"), planned("a IS DISTINCT FROM (b OR c)"));
    }

    /// An operator and how closely it binds.
    const OPERATORS: [(&str, u8); 5] = [
        ("OR", OR),
        ("AND", AND),
        ("IS DISTINCT FROM", IS),
        ("IS NOT DISTINCT FROM", IS),
        ("=", CLOSER),
    ];

    /// A chain of operands, each with whether it is negated and what follows it.
    type Chain = [(&'static str, bool, usize)];

    /// The chain from `at` on with parentheses, as far as it binds more closely than `than`.
    fn nested(chain: &Chain, at: &mut usize, than: u8) -> String {
        let mut out = chain[*at].0.to_owned();
        if chain[*at].1 {
            let mut positive = chain.to_vec();
            positive[*at].1 = false;
            out = format!("(NOT {})", nested(&positive, at, NOT));
        }
        while let Some((text, binds)) =
            OPERATORS.get(chain[*at].2).filter(|_| *at + 1 < chain.len())
            && *binds > than
        {
            *at += 1;
            out = format!("({out} {text} {})", nested(chain, at, *binds));
        }
        out
    }

    proptest! {
        #[test]
        fn chains_of_operators_are_what_they_are_with_parentheses(
            chain in prop::collection::vec(
                (prop::sample::select(vec!["a", "b", "c", "d"]), any::<bool>(), 0usize..5),
                1..7,
            ),
        ) {
            let mut plain = String::new();
            for (i, (operand, negated, next)) in chain.iter().enumerate() {
                let next = if i + 1 < chain.len() { OPERATORS[*next].0 } else { "" };
                let not = if *negated { "NOT " } else { "" };
                plain += &format!("{not}{operand} {next} ");
            }
            let meant = nested(&chain, &mut 0, 0);
            prop_assert_eq!(planned(&plain), planned(&meant), "{} is {}", plain, meant);
        }
    }
}
